//! A git component, which implements a git provider's API, as a plain async type.
//!
//! # Invariants
//! - Each step runs in a store of its own, so it knows its arguments and nothing else.

use std::sync::Arc;

use super::admission::{Kind, LoadError, other_types};
use super::engine::{Engine, PoolClass};
use super::host_state::Guest;
use super::instance::{PluginCore, boxed, call, front, not_begun};
use super::limits::{Called, Limits};
use super::{compile, described};
use lucid_types::sanitize::clean;
use lucid_types::wit::git::{Descriptor, Next, Operation};
use lucid_types::wit::git_world::GitPluginPre;
use lucid_types::wit::types;

/// The most scopes that an integration may name for its token.
const MOST_SCOPES: usize = 20;

/// An admitted git integration. A clone is the same integration.
#[derive(Clone)]
pub struct GitPlugin(Arc<Inner>);

struct Inner {
    loaded: PluginCore,
    pre: GitPluginPre<Guest>,
    descriptor: Descriptor,
}

front!(GitPlugin);

impl GitPlugin {
    /// Compiles a component, checks it, and calls for its descriptor.
    pub async fn load(
        engine: &Engine,
        name: &str,
        wasm: &[u8],
        limits: &Limits,
    ) -> Result<Self, LoadError> {
        let admitted = compile(engine, Kind::Git, name, wasm).await?;
        let pre = GitPluginPre::new(admitted.pre)
            .map_err(|error| other_types(name, Kind::Git, &error))?;
        let loaded = PluginCore::new(engine, name, admitted.digest, limits);
        let mut descriptor = describe(&loaded, &pre).await?;
        described(
            name,
            &descriptor.name,
            &descriptor.version,
            &mut descriptor.description,
        )?;
        check(&mut descriptor).map_err(|detail| LoadError::Descriptor {
            plugin: name.to_owned(),
            detail: detail.to_owned(),
        })?;
        Ok(Self(Arc::new(Inner {
            loaded,
            pre,
            descriptor,
        })))
    }

    /// Runs one step of an operation, which yields the next request or the result.
    pub async fn step(
        &self,
        settings: &str,
        operation: &Operation,
        state: Option<Vec<u8>>,
        answer: Option<types::HttpResponse>,
    ) -> Called<Next> {
        let Inner { loaded, pre, .. } = &*self.0;
        let settings = settings.to_owned();
        boxed(async move {
            let mut live = match loaded.open(PoolClass::Call, "step").await {
                Ok(live) => live,
                Err(error) => return not_begun(error),
            };
            call!(loaded, live, "step", {
                let plugin = pre.instantiate_async(&mut live.store).await?;
                let provider = plugin.lucid_git_provider();
                provider
                    .call_step(
                        &mut live.store,
                        &settings,
                        operation,
                        state.as_deref(),
                        answer.as_ref(),
                    )
                    .await
            })
        })
        .await
    }
}

async fn describe(loaded: &PluginCore, pre: &GitPluginPre<Guest>) -> Result<Descriptor, LoadError> {
    boxed(async move {
        let mut live = loaded.open(PoolClass::Call, "describe").await?;
        let called = call!(loaded, live, "describe", {
            let plugin = pre.instantiate_async(&mut live.store).await?;
            let provider = plugin.lucid_git_provider();
            provider.call_describe(&mut live.store).await.map(Ok)
        });
        Ok(called.result?)
    })
    .await
}

/// Checks the rest of the descriptor. The addresses in it are checked where they are used.
fn check(descriptor: &mut Descriptor) -> Result<(), &'static str> {
    let user = &descriptor.git_user;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if user.is_empty() || user.len() > 64 || !user.chars().all(plain) {
        return Err("the user name for git must be 1 to 64 letters, digits, hyphens, points and _");
    }
    let path = &descriptor.api_path;
    let rooted = path.is_empty() || (path.starts_with('/') && !path.ends_with('/'));
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
    if !rooted || path.len() > 200 || !path.chars().all(fits) || path.contains("..") {
        return Err("the path of its API must begin with / and be plain, such as /api/v4");
    }
    descriptor.scopes.truncate(MOST_SCOPES);
    for scope in &mut descriptor.scopes {
        *scope = clean(scope, 100);
    }
    Ok(())
}
