//! Finds a wasm standard library, or builds one.
//!
//! Tried in this order: the toolchain's own, `rustup target add`, std from source (Debian's
//! `rust-src` of exactly the compiler's version). A library built from source is kept below the
//! target folder under a hash of the compiler, and only moved to its final name when it is
//! complete.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::{Error, WASM, remap};

/// `source` skips the toolchain's own library and rustup, for machines that may not download one.
pub(crate) const CHOICE: &str = "LUCID_WASM_STD";

/// A description of how a library from source is built. Changing it invalidates earlier ones.
const MADE: &str = "folders are remapped";

/// A sysroot to build with. `None` if the toolchain's own works. `target` is the folder for one
/// from source. `say` informs the person who waits.
pub(crate) fn find(target: &Path, say: &dyn Fn(&str)) -> Result<Option<PathBuf>, Error> {
    if has_std(Path::new(print("target-libdir")?.trim())) {
        return Ok(None);
    }
    let mut tried = Vec::new();
    if std::env::var(CHOICE).as_deref() != Ok("source") {
        match output(Command::new("rustup").args(["target", "add", WASM])) {
            Ok(_) if has_std(Path::new(print("target-libdir")?.trim())) => {
                say(&format!("rustup installed the standard library for {WASM}"));
                return Ok(None);
            }
            Ok(_) => {
                tried.push("rustup: it reported success, but the library is not there".to_owned())
            }
            Err(error) => tried.push(format!("rustup: {error}")),
        }
    }
    match from_source(target, say) {
        Ok(sysroot) => Ok(Some(sysroot)),
        Err(error) => {
            tried.push(format!("from source: {error}"));
            Err(format!(
                "No standard library for {WASM}. Run `rustup target add {WASM}`, or on Debian let apt reach a mirror that has rust-src of this compiler's version. Tried: {}",
                tried.join("; ")
            )
            .into())
        }
    }
}

fn from_source(target: &Path, say: &dyn Fn(&str)) -> Result<PathBuf, Error> {
    let version = output(Command::new(rustc()).arg("-vV"))?;
    let hash = hex::encode(&Sha256::digest(format!("{version}{MADE}"))[..8]);
    let done = target.join("wasm-sysroot").join(&hash);
    if has_std(&done.join("lib/rustlib").join(WASM).join("lib")) {
        return Ok(done);
    }
    let release = line(&version, "release: ")?;
    let host = line(&version, "host: ")?;
    say(&format!(
        "building the standard library for {WASM} from source, once for this compiler"
    ));

    let work = target
        .join("wasm-sysroot")
        .join(format!("{hash}.{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    let made = make(&work, &release, &host);
    let result = made.and_then(|sysroot| {
        match std::fs::rename(&sysroot, &done) {
            // Another build was faster, and its library is just as good.
            Err(_) if has_std(&done.join("lib/rustlib").join(WASM).join("lib")) => {}
            other => other?,
        }
        Ok(done)
    });
    let _ = std::fs::remove_dir_all(&work);
    result
}

/// Builds a sysroot below `work`, and returns its folder.
fn make(work: &Path, release: &str, host: &str) -> Result<PathBuf, Error> {
    let library = sources(work, release)?;
    let built = work.join("build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_CFG")
            || name.starts_with("CARGO_FEATURE")
            || name.starts_with("CARGO_PROFILE")
            || matches!(
                name.as_str(),
                "CARGO_ENCODED_RUSTFLAGS"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "RUSTC_WRAPPER"
                    | "CARGO_TARGET_DIR"
            )
        {
            cargo.env_remove(name);
        }
    }
    output(
        cargo
            .current_dir(&library)
            // std is built by a stable compiler: its own build sets this too.
            .env("RUSTC_BOOTSTRAP", "1")
            // Without the bitcode a guest with LTO does not link.
            .env(
                "RUSTFLAGS",
                format!(
                    "-Zforce-unstable-if-unmarked -Cembed-bitcode=yes {}",
                    remap::flags([(&*library, "/rustc/library"), (work, "/rustc")])
                ),
            )
            .args([
                "build",
                "--quiet",
                "--locked",
                "--release",
                "--manifest-path",
                "sysroot/Cargo.toml",
            ])
            .args(["--target", WASM, "--target-dir"])
            .arg(&built),
    )?;
    let sysroot = work.join("sysroot");
    let rustlib = sysroot.join("lib/rustlib");
    let lib = rustlib.join(WASM).join("lib");
    std::fs::create_dir_all(&lib)?;
    for entry in std::fs::read_dir(built.join(WASM).join("release/deps"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rlib")
            && let Some(name) = path.file_name()
        {
            std::fs::copy(&path, lib.join(name))?;
        }
    }
    let own = PathBuf::from(output(Command::new(rustc()).args(["--print", "sysroot"]))?.trim());
    std::os::unix::fs::symlink(own.join("lib/rustlib").join(host), rustlib.join(host))?;
    Ok(sysroot)
}

/// The `library` folder of the compiler's sources: rustup's component if installed, else Debian's
/// package, fetched with a separate apt configuration so that the system is not touched.
fn sources(work: &Path, release: &str) -> Result<PathBuf, Error> {
    let own = PathBuf::from(output(Command::new(rustc()).args(["--print", "sysroot"]))?.trim())
        .join("lib/rustlib/src/rust/library");
    if own.join("sysroot/Cargo.toml").exists() {
        return Ok(own);
    }
    let script = r#"set -eu
cd "$1"; mkdir -p apt/lists/partial apt/cache/archives/partial
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "apt knows no mirror yet: run apt-get update" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie-backports main" >apt/sources.list
set -- "$2" -oDir::Etc::sourcelist="$PWD/apt/sources.list" -oDir::Etc::sourceparts=/dev/null \
  -oDir::State::Lists="$PWD/apt/lists" -oDir::Cache="$PWD/apt/cache" -oAPT::Sandbox::User=root -oAcquire::Languages=none
release=$1; shift
apt-get -qq "$@" update
version=$(apt-cache "$@" madison rust-src | cut -d'|' -f2 | tr -d ' ' | grep -F "$release+" | head -n 1)
[ -n "$version" ] || { echo "Debian has no rust-src $release any more" >&2; exit 1; }
apt-get -qq "$@" download "rust-src=$version"
dpkg --fsys-tarfile rust-src*.deb | tar xf - --wildcards './usr/src/rustc-*/library'
"#;
    output(
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(work)
            .arg(release),
    )?;
    Ok(work.join(format!("usr/src/rustc-{release}/library")))
}

fn rustc() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

fn print(what: &str) -> Result<String, Error> {
    output(Command::new(rustc()).args(["--print", what, "--target", WASM]))
}

fn has_std(lib: &Path) -> bool {
    std::fs::read_dir(lib).is_ok_and(|mut entries| {
        entries.any(|e| {
            e.is_ok_and(|e| {
                let name = e.file_name();
                let name = name.to_string_lossy();
                // rustup's has a hash in its name, one from source has none.
                name == "libstd.rlib" || (name.starts_with("libstd-") && name.ends_with(".rlib"))
            })
        })
    })
}

fn line(text: &str, start: &str) -> Result<String, Error> {
    let found = text.lines().find_map(|l| l.strip_prefix(start));
    Ok(found
        .ok_or_else(|| format!("rustc -vV has no line '{start}'"))?
        .to_owned())
}

fn output(command: &mut Command) -> Result<String, Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{name}: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(format!("{name}: {}", last.join(" / ")).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
