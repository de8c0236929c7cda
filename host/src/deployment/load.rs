//! Fetches and admits the components of a manifest.
//!
//! # Invariants
//!
//! - A component's digest is compared before any of it is compiled, and settings are validated
//!   before any code runs with them.
//! - Every failure is reported, and if there is any, nothing is loaded: [`load`] can be called again at any time,
//!   and returns the plugins of a whole manifest or none.
//! - A problem with an upload is reported for its file, which the manifest does not name.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use url::Url;

use crate::builtin;
use crate::manifest::loaded::{
    LoadedGit, LoadedPlugins, LoadedPolicy, LoadedProvider, LoadedSecondBuild, LoadedTools,
};
use crate::manifest::model::{
    ComponentSource, GitEntry, Located, Manifest, PluginEntry, PluginSettings, ProviderEntry,
    ToolsEntry,
};
use crate::manifest::overrides::{SecondBuildRole, UploadOverride};
use crate::manifest::problem::{ManifestProblem, ManifestProblems, SourcePosition};
use crate::manifest::settings_schema::SettingsSchema;
use lucid_net::oci::{FetchResults, Reference};
use lucid_session::SEPARATOR;
use lucid_types::digest::Digest;
use lucid_wasm::{Engine, EngineOptions, Plugin, PluginKind, Plugins, TypedPlugin, World};

/// How many components are compiled at once. A single one uses all processors only part of the
/// time.
const AT_ONCE: usize = 4;
/// The maximum length of a tool's name for models, in characters.
const LONGEST_TOOL_NAME: usize = 64;

/// Loads all plugins of a manifest. Reads files, and uses processors to compile what was not
/// compiled before. If `only` names a plugin, the others are taken from `known`, whatever became of
/// their files since.
///
/// # Errors
///
/// Reports the reason for each plugin that cannot be loaded.
pub(crate) async fn load(
    manifest: &Manifest,
    engine: &Engine,
    known: &Plugins,
    only: Option<(PluginKind, &str)>,
) -> Result<LoadedPlugins, ManifestProblems> {
    let from = LoadContext {
        manifest,
        engine,
        known,
        only,
    };
    let mut wrong = Vec::new();

    let policies = manifest.all_policies();
    let tasks = policies
        .iter()
        .map(|(name, entry)| policy(from, name, entry).boxed());
    let policies = join_loads(tasks.collect(), &mut wrong).await;

    let providers: Vec<_> = if manifest.providers.is_empty() {
        let all = builtin::PROVIDERS.iter();
        all.map(|(name, _)| ((*name).to_owned(), PluginEntry::builtin(name), None))
            .collect()
    } else {
        let all = manifest.providers.iter();
        all.map(|(name, entry)| {
            let whole = Arc::new(entry.clone());
            (name.clone(), entry.plugin.clone(), Some(whole))
        })
        .collect()
    };
    let tasks = providers
        .iter()
        .map(|(name, plugin, entry)| provider(from, name, plugin, entry.clone()).boxed());
    let providers = join_loads(tasks.collect(), &mut wrong).await;

    let tasks = manifest
        .tools
        .iter()
        .map(|(name, entry)| tools(from, name, entry).boxed());
    let tools = join_loads(tasks.collect(), &mut wrong).await;

    let gits: Vec<_> = if manifest.git.is_empty() {
        let all = builtin::GIT.iter();
        all.map(|(name, _)| {
            let plugin = PluginEntry::builtin(name);
            let (base_url, web_url) = (None, None);
            let entry = GitEntry {
                plugin,
                base_url,
                web_url,
            };
            ((*name).to_owned(), entry)
        })
        .collect()
    } else {
        let all = manifest.git.iter();
        all.map(|(name, entry)| (name.clone(), entry.clone()))
            .collect()
    };
    let tasks = gits
        .iter()
        .map(|(name, entry)| git(from, name, entry).boxed());
    let git = join_loads(tasks.collect(), &mut wrong).await;

    ManifestProblems::unless_none(wrong)?;
    Ok(LoadedPlugins {
        policies,
        providers,
        tools,
        git,
    })
}

/// The inputs from which plugins are made.
#[derive(Clone, Copy)]
struct LoadContext<'a> {
    manifest: &'a Manifest,
    engine: &'a Engine,
    /// The plugins that are loaded already.
    known: &'a Plugins,
    /// The only plugin that is loaded anew, if not all are.
    only: Option<(PluginKind, &'a str)>,
}

impl<'a> LoadContext<'a> {
    /// Whether the loaded plugin is kept without looking at its file.
    fn reuses(&self, kind: PluginKind, name: &str) -> bool {
        self.only.is_some_and(|only| only != (kind, name))
    }

    fn site(&self, kind: PluginKind, name: &'a str, entry: &'a PluginEntry) -> ProblemSite<'a> {
        ProblemSite {
            file: self.manifest.path.as_deref(),
            kind,
            name,
            entry,
            upload: self.manifest.upload(kind, name),
            brought: &self.manifest.fetched,
        }
    }
}

async fn join_loads<'a, T>(
    tasks: Vec<BoxFuture<'a, Result<T, Vec<ManifestProblem>>>>,
    wrong: &mut Vec<ManifestProblem>,
) -> Vec<T> {
    let mut tasks = stream::iter(tasks).buffered(AT_ONCE);
    let mut all = Vec::new();
    while let Some(loaded) = tasks.next().await {
        match loaded {
            Ok(one) => all.push(one),
            Err(problems) => wrong.extend(problems),
        }
    }
    all
}

async fn policy(
    from: LoadContext<'_>,
    name: &str,
    entry: &PluginEntry,
) -> Result<LoadedPolicy, Vec<ManifestProblem>> {
    let site = from.site(PluginKind::Policy, name, entry);
    let plugin = build(
        from,
        &site,
        builtin::POLICIES,
        from.known.policy(name),
        from.known.builds(name),
    )
    .await?;
    let (second, warning) = match beside(from, name, entry).await {
        Ok(second) => (
            second.filter(|one| one.plugin.digest() != plugin.digest()),
            None,
        ),
        // A candidate was asked for. The previous build is only a fallback.
        Err((SecondBuildRole::Candidate { .. }, problems)) => return Err(problems),
        Err((SecondBuildRole::Previous, problems)) => {
            let why: Vec<String> = problems.iter().map(ManifestProblem::to_string).collect();
            let warning = format!(
                "The active build of the policy `{name}` is on probation, and the one before it cannot be loaded, so nothing steps in where it fails: {}.",
                why.join("; ")
            );
            (None, Some(warning))
        }
    };
    Ok(LoadedPolicy {
        plugin,
        settings: entry.settings.values.clone(),
        builtin: site.builtin(),
        second,
        warning,
    })
}

/// The second build of a policy, if there is one.
async fn beside(
    from: LoadContext<'_>,
    name: &str,
    entry: &PluginEntry,
) -> Result<Option<LoadedSecondBuild>, (SecondBuildRole, Vec<ManifestProblem>)> {
    let Some(second) = from.manifest.second_build(name) else {
        return Ok(None);
    };
    let site = ProblemSite {
        upload: second.upload.as_ref(),
        ..from.site(PluginKind::Policy, name, entry)
    };
    let there = from.known.second_build(name);
    let builds = from.known.builds(name);
    let plugin = build(from, &site, builtin::POLICIES, there, builds).await;
    Ok(Some(LoadedSecondBuild {
        plugin: plugin.map_err(|problems| (second.role, problems))?,
        role: second.role,
        probation: second.upload.as_ref().and_then(|upload| upload.probation),
        builtin: site.builtin(),
    }))
}

/// The plugin of an entry, with settings that fit it. `there` is the one in its place at present; a component that is
/// among the `known` ones is not loaded again.
async fn build<'a, W: World>(
    from: LoadContext<'_>,
    site: &ProblemSite<'_>,
    builtin: &'static [(&'static str, &'static [u8])],
    there: Option<&'a TypedPlugin<W>>,
    mut known: impl Iterator<Item = &'a TypedPlugin<W>>,
) -> Result<TypedPlugin<W>, Vec<ManifestProblem>> {
    let (name, limits) = (site.name, site.entry.limits.limits());
    let stays = there.filter(|there| from.reuses(W::KIND, name) && there.limits() == &limits);
    let plugin = match stays {
        Some(there) => there.clone(),
        None => {
            let wasm = site.component(builtin).await?;
            match known.find(|plugin| plugin.is(&wasm, &limits)) {
                Some(plugin) => plugin.clone(),
                None => TypedPlugin::load(from.engine, name, &wasm, &limits)
                    .await
                    .map_err(|why| site.component_is(why.to_string()))?,
            }
        }
    };
    let schema = plugin.settings_schema().map(str::to_owned);
    site.check_settings(schema).await?;
    Ok(plugin)
}

async fn provider(
    from: LoadContext<'_>,
    name: &str,
    plugin: &PluginEntry,
    entry: Option<Arc<ProviderEntry>>,
) -> Result<LoadedProvider, Vec<ManifestProblem>> {
    let site = from.site(PluginKind::Llm, name, plugin);
    let known = from.known.llm(name);
    let loaded = build(from, &site, builtin::PROVIDERS, known, known.into_iter()).await?;
    let settings = serde_json::Value::Object(plugin.settings.values.clone()).to_string();
    let models = if plugin.settings.values.is_empty() {
        loaded.known_models().to_vec()
    } else {
        let called = loaded.models(&settings).await.result;
        called.map_err(|why| site.settings_are(plugin.settings.at, why.to_string()))?
    };
    Ok(LoadedProvider {
        plugin: loaded,
        settings,
        models,
        entry,
        builtin: site.builtin().is_some(),
    })
}

async fn tools(
    from: LoadContext<'_>,
    name: &str,
    entry: &ToolsEntry,
) -> Result<LoadedTools, Vec<ManifestProblem>> {
    let ToolsEntry { plugin, .. } = entry;
    let site = from.site(PluginKind::Tools, name, plugin);
    let known = from.known.tools(name);
    let loaded = build(from, &site, &[], known, known.into_iter()).await?;
    let settings = serde_json::Value::Object(plugin.settings.values.clone()).to_string();
    let definitions = loaded.definitions(&settings).await.result;
    let at = if plugin.settings.values.is_empty() {
        plugin.component.at
    } else {
        plugin.settings.at
    };
    let definitions = definitions.map_err(|why| site.settings_are(at, why.to_string()))?;
    for tool in &definitions {
        let whole = format!("{name}{SEPARATOR}{}", tool.name);
        if whole.len() > LONGEST_TOOL_NAME {
            let size = whole.len();
            return Err(site.settings_are(
                plugin.at,
                format!("the tool `{whole}` has a name of {size} characters, and models take {LONGEST_TOOL_NAME}: give the component a shorter name here"),
            ));
        }
    }
    Ok(LoadedTools {
        plugin: loaded,
        settings,
        definitions,
        entry: entry.clone(),
    })
}

async fn git(
    from: LoadContext<'_>,
    name: &str,
    entry: &GitEntry,
) -> Result<LoadedGit, Vec<ManifestProblem>> {
    let GitEntry { plugin, .. } = entry;
    let site = from.site(PluginKind::Git, name, plugin);
    let known = from.known.git(name);
    let loaded = build(from, &site, builtin::GIT, known, known.into_iter()).await?;
    let url = |url: &Option<Located<Url>>| url.as_ref().map(|url| url.value.clone());
    Ok(LoadedGit {
        plugin: loaded,
        settings: serde_json::Value::Object(plugin.settings.values.clone()).to_string(),
        base_url: url(&entry.base_url),
        web_url: url(&entry.web_url),
        builtin: site.builtin().is_some(),
    })
}

/// The plugin to blame for a problem, and its position.
struct ProblemSite<'a> {
    file: Option<&'a Path>,
    kind: PluginKind,
    name: &'a str,
    entry: &'a PluginEntry,
    /// The upload that replaces the entry's component.
    upload: Option<&'a UploadOverride>,
    /// The components fetched from registries.
    brought: &'a FetchResults,
}

impl ProblemSite<'_> {
    /// The built-in component it is, if it is one.
    fn builtin(&self) -> Option<&'static str> {
        match self.entry.component.value {
            ComponentSource::Builtin(name) if self.upload.is_none() => Some(name),
            _ => None,
        }
    }

    fn component_is(&self, why: String) -> Vec<ManifestProblem> {
        vec![match self.upload {
            Some(upload) => self.upload_is(upload, &why),
            None => ManifestProblem::at(self.file, self.entry.component.at, why),
        }]
    }

    fn settings_are(&self, at: SourcePosition, why: String) -> Vec<ManifestProblem> {
        vec![match self.upload {
            // It is not in the manifest if it exists by an upload alone.
            Some(upload) if upload.added => self.upload_is(upload, &why),
            Some(_) => {
                let why = format!("the uploaded build of `{}`: {why}", self.name);
                ManifestProblem::at(self.file, at, why)
            }
            None => ManifestProblem::at(self.file, at, why),
        }]
    }

    /// A problem of an upload.
    fn upload_is(&self, upload: &UploadOverride, why: &str) -> ManifestProblem {
        let Self { kind, name, .. } = self;
        let what = format!(
            "the uploaded build of the {kind} plugin `{name}` cannot be used: {why}. Where it is the active one, `lucid plugin rollback {kind} {name}` goes back to the one before"
        );
        ManifestProblem::of_file(&upload.file, what)
    }

    /// The component's bytes, with the digest verified.
    async fn component(
        &self,
        builtins: &'static [(&'static str, &'static [u8])],
    ) -> Result<Cow<'static, [u8]>, Vec<ManifestProblem>> {
        if let Some(upload) = self.upload {
            let wasm = self.file_at(&upload.file).await?;
            let found = Digest::of(&wasm);
            if found != upload.digest {
                return Err(self.component_is(format!(
                    "it is not what was uploaded: the file has sha256:{found}"
                )));
            }
            return Ok(wasm);
        }
        let wasm = match &self.entry.component.value {
            ComponentSource::Builtin(name) => {
                let found = builtins.iter().find(|(known, _)| known == name);
                let found = found.map(|(_, wasm)| Cow::Borrowed(*wasm));
                found.ok_or_else(|| self.component_is(format!("there is no built-in `{name}`")))?
            }
            ComponentSource::File(path) => self.file_at(path).await?,
            ComponentSource::Registry(reference) => self.registry_component(reference).await?,
        };
        if let Some(stated) = &self.entry.digest {
            let found = Digest::of(&wasm);
            if found != stated.value {
                let name = self.name;
                return Err(vec![ManifestProblem::at(
                    self.file,
                    stated.at,
                    format!(
                        "the component of `{name}` is another than the manifest means: it has sha256:{found}. If that is the one you want, write its digest here; if not, do not run it"
                    ),
                )]);
            }
        }
        Ok(wasm)
    }

    /// The component from a registry, read from the disk.
    async fn registry_component(
        &self,
        reference: &Reference,
    ) -> Result<Cow<'static, [u8]>, Vec<ManifestProblem>> {
        let fetched = match self.brought.by_reference.get(reference) {
            Some(Ok(fetched)) => fetched,
            Some(Err(why)) => {
                return Err(
                    self.component_is(format!("the component {reference} is not there: {why}"))
                );
            }
            None => {
                return Err(
                    self.component_is(format!("the component {reference} was not asked for"))
                );
            }
        };
        let wasm = self.file_at(&fetched.file).await?;
        let found = Digest::of(&wasm);
        if found != fetched.digest {
            return Err(self.component_is(format!(
                "the component {reference} is not what came from its registry: {} has sha256:{found}. `lucid plugin reload` fetches it again",
                fetched.file.display()
            )));
        }
        Ok(wasm)
    }

    async fn file_at(&self, path: &Path) -> Result<Cow<'static, [u8]>, Vec<ManifestProblem>> {
        let asked = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read(&asked)).await;
        let read = read.unwrap_or_else(|_| Err(std::io::Error::other("reading it broke off")));
        read.map(Cow::Owned).map_err(|why| {
            let path = path.display();
            self.component_is(format!("the component {path} cannot be read: {why}"))
        })
    }

    /// Validates settings. Compiling a schema takes a while, so it has a thread of its own, and a
    /// panic there is blamed on the schema.
    async fn check_settings(&self, schema: Option<String>) -> Result<(), Vec<ManifestProblem>> {
        let Some(text) = schema else {
            return Ok(());
        };
        let settings: PluginSettings = self.entry.settings.clone();
        let checked = tokio::task::spawn_blocking(move || {
            SettingsSchema::new(&text).map(|schema| schema.check(&settings))
        });
        let name = self.name;
        let wrong = match checked.await {
            Ok(Ok(wrong)) => wrong,
            Ok(Err(why)) => {
                let what = format!(
                    "the plugin `{name}` gives a schema for its settings that cannot be used ({why}): report it to its author"
                );
                return Err(self.component_is(what));
            }
            Err(_) => {
                let what = format!(
                    "the plugin `{name}` gives a schema for its settings that cannot be used: report it to its author"
                );
                return Err(self.component_is(what));
            }
        };
        if wrong.is_empty() {
            return Ok(());
        }
        let problems = wrong
            .into_iter()
            .flat_map(|(at, what)| self.settings_are(at, format!("the plugin `{name}` {what}")));
        Err(problems.collect())
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    // Checked before it is opened: opening a pipe would wait for a writer.
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    // One byte above the limit, so that admission reports the limit.
    let most = EngineOptions::default().largest_component as u64 + 1;
    let mut wasm = Vec::new();
    std::fs::File::open(path)?
        .take(most)
        .read_to_end(&mut wasm)?;
    Ok(wasm)
}
