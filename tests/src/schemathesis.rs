//! schemathesis: requests made of the host's own OpenAPI document, good ones and wrong ones, each answer held
//! against what the document says.
//!
//! It is installed from PyPI, in the versions of `tests/schemathesis.txt`. The same seed makes the same
//! requests.

use std::process::{Command, Stdio};

use crate::host::Host;
use crate::python::environment;

const VERSIONS: &str = include_str!("../schemathesis.txt");
const CONFIGURATION: &str = include_str!("../schemathesis.toml");
/// Leaves out the tests that need it, where PyPI cannot be reached.
const CHOICE: &str = "LUCID_SCHEMATHESIS";

/// Tries all that the document says, for whoever has this token, for so many seconds. Gives what it printed
/// where something is not as it is described.
pub fn schemathesis(host: &Host, token: &str, seconds: u32, more: &[&str]) -> Result<(), String> {
    if std::env::var(CHOICE).is_ok_and(|choice| choice == "skip") {
        eprintln!("{CHOICE}=skip: the API is NOT held against its description");
        return Ok(());
    }
    let python = environment("lucid-tests-schemathesis", VERSIONS, CHOICE);
    let folder = tempfile::Builder::new()
        .prefix("lucid-schemathesis-")
        .tempdir()
        .unwrap();
    let configuration = folder.path().join("schemathesis.toml");
    std::fs::write(&configuration, CONFIGURATION).unwrap();
    let output = Command::new(python.join("bin/st"))
        .arg("--config-file")
        .arg(&configuration)
        .arg("run")
        .arg(format!("http://{}/openapi.json", host.address()))
        .args(["--header", &format!("Authorization: Bearer {token}")])
        .args(["--max-time", &seconds.to_string()])
        .args(more)
        .current_dir(folder.path())
        .env("NO_PROXY", "*")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    // Seen with `--nocapture`: what was tried, and what was not.
    eprintln!("{printed}");
    if output.status.success() {
        Ok(())
    } else {
        Err(printed)
    }
}
