//! What can fail in the commands of `lucid plugin`.
//!
//! The texts are for sentences: where a command ends, one is made of its error.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use reqwest::{StatusCode, Url};

use crate::auth::IssueError;
use crate::config::ConfigError;
use crate::deployment::uploads::UploadStoreError;
use lucid_store::StoreError;
use lucid_wasm::{EngineError, LoadError, PluginKind};

/// The variable that holds a token for another server.
pub(super) const TOKEN: &str = "LUCID_TOKEN";

/// Why a component cannot be run here.
#[derive(Debug, thiserror::Error)]
pub(super) enum ComponentError {
    /// Its file cannot be read.
    #[error("the component {} cannot be read: {source}", .path.display())]
    Read {
        /// The file's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a folder, or something else without content.
    #[error("`{}` is no file; name the component that `lucid plugin build` made", .0.display())]
    NoFile(PathBuf),
    /// It is larger than a host allows.
    #[error("the component {} has {size} bytes, and a host takes {most}", .path.display())]
    TooLarge {
        /// The file's path.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        most: u64,
    },
    /// The engine does not start on this machine.
    #[error("the plugin cannot be run here: {0}")]
    Engine(#[from] EngineError),
}

/// Why an administrator's command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServerError {
    /// The component to be uploaded is none.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// This machine's settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This machine's upload store cannot be used.
    #[error(transparent)]
    Uploads(#[from] UploadStoreError),
    /// There is no token for another server.
    #[error(
        "set {TOKEN} to an administrator's token of that server: `lucid token --user NAME --admin` prints one there"
    )]
    NoToken,
    /// No token can be made here, since another server signs them.
    #[error(
        "there is no token: {0}. Set {TOKEN} to an administrator's token of the identity provider"
    )]
    NoSecret(#[source] IssueError),
    /// No token can be made here.
    #[error("there is no token: {0}")]
    Issue(#[source] IssueError),
    /// The port of the server here is not known.
    #[error("PORT is 0, which is another port at each start: name the server with --server")]
    RandomPort,
    /// The address of the server here is none.
    #[error("{address} is no address: {source}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What is wrong with it.
        source: url::ParseError,
    },
    /// `--server` is not the address of a server.
    #[error(
        "--server must be an http or https URL such as https://lucid.example.org, without user name, password or query"
    )]
    Url,
    /// No path can be added to the server's address.
    #[error("the server's address can have no path")]
    NoPath,
    /// There is no HTTP client.
    #[error("no server can be asked: {0}")]
    Client(#[source] reqwest::Error),
    /// The server cannot be reached.
    #[error("no server answers at {base} ({}). Does it run? --server names another", deepest(.source))]
    NoAnswer {
        /// The server's address.
        base: Url,
        /// The cause.
        source: reqwest::Error,
    },
    /// The response did not arrive whole.
    #[error("the answer of {base} broke off: {source}")]
    BrokeOff {
        /// The server's address.
        base: Url,
        /// The cause.
        source: reqwest::Error,
    },
    /// The server refused, with this sentence.
    #[error("{0}")]
    Refused(String),
    /// It is another program.
    #[error("the server at {base} answered {status}, which is not how a Lucid server answers")]
    NoLucid {
        /// The server's address.
        base: Url,
        /// The response's status.
        status: StatusCode,
    },
    /// The response has another form than in this version.
    #[error(
        "the server is of another version than this program, which cannot read its answer ({0}): --json prints it as it is"
    )]
    OtherVersion(#[source] serde_json::Error),
    /// Another shadow run began meanwhile.
    #[error("another shadow took the place of this one before it was read")]
    Replaced,
    /// There is nothing to roll back.
    #[error("the {kind} plugin `{name}` has no uploaded build to go back from")]
    NothingActive {
        /// The plugin's kind.
        kind: PluginKind,
        /// The plugin's name, on one line.
        name: String,
    },
}

/// The cause that all others come from: it alone says what a person can mend.
fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    cause.to_string()
}

/// Why a project was not built.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    /// The folder has no project.
    #[error(
        "{} holds no Cargo.toml, package.json or requirements.txt; make a project with `lucid plugin new`",
        .0.display()
    )]
    NoProject(PathBuf),
    /// A Rust project does not compile.
    #[error(transparent)]
    Rust(#[from] lucid_guest_build::Error),
    /// The project's own description cannot be read.
    #[error("{file} cannot be read: {source}")]
    Read {
        /// The file's name.
        file: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// `Cargo.toml` is not TOML.
    #[error("Cargo.toml cannot be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// `package.json` is not JSON.
    #[error("package.json cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// The project has no name.
    #[error("{0}")]
    NoName(&'static str),
    /// The component cannot be written.
    #[error("{} cannot be written: {source}", .path.display())]
    Write {
        /// The component's path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The project's folder cannot be found.
    #[error("{}: {source}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A tool is not there.
    #[error("{program} could not be started ({source}); {install}")]
    Start {
        /// The tool.
        program: String,
        /// The cause.
        source: io::Error,
        /// How it is installed.
        install: &'static str,
    },
    /// A tool failed, with output of its own.
    #[error("`{0}` failed; why is above")]
    Failed(String),
    /// `npm run build` made no component of the project's name.
    #[error("`npm run build` went well and left no {}", .0.display())]
    NothingLeft(PathBuf),
    /// `build.sh` made no component.
    #[error("build.sh went well and wrote no component")]
    Nothing,
    /// `build.sh` made several.
    #[error("build.sh wrote more than one component")]
    Several,
    /// The build's thread panicked.
    #[error("it broke off")]
    BrokeOff,
}

/// Why a project cannot have a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    /// It has other characters, or too many.
    #[error(
        "a plugin's name has 1 to {most} lower-case letters, digits and hyphens, a letter first and no hyphen last: `{name}` is none"
    )]
    Form {
        /// The name.
        name: String,
        /// The most characters.
        most: usize,
    },
    /// It cannot be a crate's.
    #[error("a crate cannot be called `{0}`: choose another name")]
    Crate(String),
}

/// Why a session cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReplayCommandError {
    /// The component cannot be run here.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The log cannot be opened.
    #[error("the log cannot be read: {0}. WORKSPACE_BASE_PATH says where it is")]
    Open(#[source] StoreError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// The log does not have the session.
    #[error("there is no session {0} in the log")]
    NoSession(String),
    /// The component is not admitted.
    #[error("a host would not take it: {0}")]
    Load(#[from] LoadError),
    /// The session has no step.
    #[error("the session {0} has made no step yet")]
    NoStep(String),
    /// A step in the log is of another form.
    #[error("step {step} of the log cannot be read by this build: {source}")]
    Step {
        /// The step.
        step: u64,
        /// The cause.
        source: serde_json::Error,
    },
}
