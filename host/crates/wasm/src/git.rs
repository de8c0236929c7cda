//! A git component, which implements a git provider's API, as a plain async type.
//!
//! # Invariants
//! - Each step runs in a store of its own, so it knows its arguments and nothing else.

use wasmtime::Store;

use super::admission::{DescriptorError, LoadError};
use super::core::{PluginCore, PluginMetadata};
use super::exports::{ComponentExports, InstanceExports};
use super::host_state::HostState;
use super::instance::fresh;
use super::kind::PluginKind;
use super::limits::CallOutcome;
use super::plugin::{TypedPlugin, World, about};
use lucid_types::sanitize::sanitize;
use lucid_types::wit::git::{Descriptor, Next, Operation};
use lucid_types::wit::types;

/// The most scopes that an integration may name for its token.
const MOST_SCOPES: usize = 20;

/// An admitted git integration. A clone is the same integration.
pub type GitPlugin = TypedPlugin<GitWorld>;

type StepParams<'a> = (
    &'a str,
    &'a Operation,
    Option<&'a [u8]>,
    Option<&'a types::HttpResponse>,
);

/// The world of git providers' integrations.
#[derive(Debug)]
pub enum GitWorld {}

impl World for GitWorld {
    const KIND: PluginKind = PluginKind::Git;
    type Descriptor = Descriptor;
    type Known = ();

    fn check_types(
        plugin: &InstanceExports<'_>,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<()> {
        plugin.function::<StepParams<'_>, Result<Next, types::Error>>(store, "step")?;
        Ok(())
    }

    fn about(descriptor: &mut Descriptor) -> PluginMetadata {
        about!(descriptor)
    }

    fn check(descriptor: &mut Descriptor) -> Result<(), DescriptorError> {
        check(descriptor)
    }

    async fn known(_: &PluginCore, _: &ComponentExports) -> Result<(), LoadError> {
        Ok(())
    }
}

impl GitPlugin {
    /// Runs one step of an operation, which yields the next request or the result.
    pub async fn step(
        &self,
        settings: &str,
        operation: &Operation,
        state: Option<Vec<u8>>,
        answer: Option<types::HttpResponse>,
    ) -> CallOutcome<Next> {
        let settings = settings.to_owned();
        fresh!(self, "step", |plugin, store| {
            let (state, answer) = (state.as_deref(), answer.as_ref());
            let params: StepParams<'_> = (&settings, operation, state, answer);
            plugin.call(store, "step", params).await
        })
    }
}

/// Checks the rest of the descriptor. The addresses in it are checked where they are used.
fn check(descriptor: &mut Descriptor) -> Result<(), DescriptorError> {
    let user = &descriptor.git_user;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if user.is_empty() || user.len() > 64 || !user.chars().all(plain) {
        return Err(DescriptorError::GitUser);
    }
    let path = &descriptor.api_path;
    let rooted = path.is_empty() || (path.starts_with('/') && !path.ends_with('/'));
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.~/".contains(c);
    if !rooted || path.len() > 200 || !path.chars().all(fits) || path.contains("..") {
        return Err(DescriptorError::ApiPath);
    }
    descriptor.scopes.truncate(MOST_SCOPES);
    for scope in &mut descriptor.scopes {
        *scope = sanitize(scope, 100);
    }
    Ok(())
}
