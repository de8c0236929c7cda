//! Virtual environments of the tests' own, beside the binary: made where they are not there whole, or are of
//! other versions.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::binary;

/// The folder of an environment with exactly these packages, as `pip freeze` writes them. `choice` names the
/// variable that leaves out the tests that need it, for where PyPI cannot be reached.
pub(crate) fn environment(name: &str, versions: &str, choice: &str) -> PathBuf {
    let folder = binary().with_file_name(name);
    let done = folder.join("lucid-versions.txt");
    let lock = File::create(folder.with_extension("lock")).unwrap();
    // Tests run side by side.
    lock.lock().unwrap();
    if std::fs::read_to_string(&done).is_ok_and(|there| there == versions) {
        return folder;
    }
    std::fs::remove_dir_all(&folder).ok();
    let system = Path::new("/usr/bin/python3");
    let python = if system.exists() {
        system
    } else {
        Path::new("python3")
    };
    run(
        Command::new(python).args(["-m", "venv"]).arg(&folder),
        "make a virtual environment (Debian has what it needs in python3-venv)",
        choice,
    );
    let wanted = folder.join("wanted.txt");
    std::fs::write(&wanted, versions).unwrap();
    run(
        Command::new(folder.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(["--no-deps", "--only-binary", ":all:", "--requirement"])
            .arg(&wanted),
        "install packages from PyPI",
        choice,
    );
    std::fs::write(&done, versions).unwrap();
    folder
}

fn run(command: &mut Command, what: &str, choice: &str) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("could not {what}: {e}; {choice}=skip leaves these tests out"));
    assert!(
        output.status.success(),
        "could not {what}; {choice}=skip leaves these tests out:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
