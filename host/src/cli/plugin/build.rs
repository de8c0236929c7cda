//! `lucid plugin build`: builds a project's folder into one component.
//!
//! # Invariants
//!
//! - A Rust component is put in place by a rename, so a host that watches the file never reads half
//!   of it. A failed build leaves the previous one.
//!
//! The tools of other languages write their component in place: a host that reads half of one
//! rejects it as broken, keeps the previous one, and looks again.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use super::cache;
use super::error::BuildError;
use crate::cli::failed;
use crate::cli::report::{Severity, print_message};
use lucid_guest_build::Project;

/// Builds, and prints the component's path.
pub(super) fn main(folder: &Path) -> ExitCode {
    match build(folder) {
        Ok(file) => {
            let size = std::fs::metadata(&file).map_or(0, |data| data.len());
            outln!("{} is built, {} KB.", file.display(), size.div_ceil(1024));
            ExitCode::SUCCESS
        }
        Err(why) => failed(&format!("The plugin was not built: {why}.")),
    }
}

/// Builds the project in a folder with the tools of its language, and returns the component's path.
pub(super) fn build(folder: &Path) -> Result<PathBuf, BuildError> {
    let there = |name: &str| folder.join(name).is_file();
    if there("Cargo.toml") {
        rust(folder)
    } else if there("package.json") {
        javascript(folder)
    } else if there("requirements.txt") {
        python(folder)
    } else {
        Err(BuildError::NoProject(folder.to_owned()))
    }
}

fn rust(folder: &Path) -> Result<PathBuf, BuildError> {
    let project = Project::new(folder, cache().unwrap_or_else(|| folder.join("target")));
    let component = project.component(&|text| print_message(Severity::Info, text))?;
    let text = read(folder, "Cargo.toml")?;
    let manifest = toml::de::DeTable::parse(&text)?;
    let package = manifest.get_ref().get("package");
    let name = package
        .and_then(|package| package.get_ref().get("name"))
        .and_then(|name| name.get_ref().as_str())
        .ok_or(BuildError::NoName("Cargo.toml names no package"))?;
    place(folder, name, &component)
}

fn place(folder: &Path, name: &str, component: &[u8]) -> Result<PathBuf, BuildError> {
    let file = folder.join(format!("{name}.wasm"));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut draft| {
        use std::io::Write as _;
        use std::os::unix::fs::PermissionsExt as _;
        draft.write_all(component)?;
        // A host under another user may need to read it.
        draft
            .as_file()
            .set_permissions(std::fs::Permissions::from_mode(0o644))?;
        draft.persist(&file).map_err(|error| error.error)
    });
    match written {
        Ok(_) => Ok(file),
        Err(source) => Err(BuildError::Write { path: file, source }),
    }
}

fn read(folder: &Path, file: &'static str) -> Result<String, BuildError> {
    std::fs::read_to_string(folder.join(file)).map_err(|source| BuildError::Read { file, source })
}

fn javascript(folder: &Path) -> Result<PathBuf, BuildError> {
    let text = read(folder, "package.json")?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    let name = package["name"].as_str();
    let name = name.ok_or(BuildError::NoName("package.json has no name"))?;
    let install = "install Node.js 20 or newer with its npm";
    let locked = folder.join("package-lock.json").is_file();
    let installed = folder.join("node_modules/.package-lock.json");
    // Dependencies are not installed again, unless the lock file has changed.
    let written = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let lock = written(&folder.join("package-lock.json"));
    if written(&installed).is_none_or(|then| lock.is_some_and(|lock| lock > then)) {
        let how = if locked { "ci" } else { "install" };
        // Packages' install scripts are not run.
        let quiet = [
            how,
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--silent",
        ];
        run(folder, "npm", &quiet, install)?;
    }
    run(folder, "npm", &["run", "--silent", "build"], install)?;
    let file = folder.join(format!("{name}.wasm"));
    if file.is_file() {
        return Ok(file);
    }
    Err(BuildError::NothingLeft(file))
}

fn python(folder: &Path) -> Result<PathBuf, BuildError> {
    let install =
        "install Python 3.10 or newer with its venv (on Debian: apt-get install python3-venv)";
    if !folder.join(".venv/bin/pip").is_file() {
        run(folder, "python3", &["-m", "venv", ".venv"], install)?;
    }
    let quiet = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--requirement",
        "requirements.txt",
    ];
    run(folder, ".venv/bin/python", &quiet, install)?;
    let begun = SystemTime::now();
    run(folder, "sh", &["build.sh"], install)?;
    // The name is only in the script.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let components = entries.map(|entry| entry.path()).filter(|path| {
        let written = path.metadata().and_then(|data| data.modified());
        // Some file systems have a resolution of whole seconds.
        let fresh = written.is_ok_and(|then| then + Duration::from_secs(2) >= begun);
        path.extension().is_some_and(|end| end == "wasm") && fresh
    });
    let mut components: Vec<PathBuf> = components.collect();
    match (components.pop(), components.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(BuildError::Nothing),
        (Some(_), false) => Err(BuildError::Several),
    }
}

/// Runs a tool in the project's folder. Its output goes to stderr.
fn run(
    folder: &Path,
    program: &str,
    args: &[&str],
    install: &'static str,
) -> Result<(), BuildError> {
    // A path is relative to the project's folder, whatever this process's working directory.
    let found = if program.contains('/') {
        folder
            .canonicalize()
            .map_err(|source| BuildError::Folder {
                path: folder.to_owned(),
                source,
            })?
            .join(program)
    } else {
        program.into()
    };
    let status = Command::new(&found)
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .map_err(|source| BuildError::Start {
            program: program.to_owned(),
            source,
            install,
        })?;
    if status.success() {
        return Ok(());
    }
    Err(BuildError::Failed(format!("{program} {}", args.join(" "))))
}
