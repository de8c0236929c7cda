//! Secrets that this machine generates for itself and keeps in files.
//!
//! # Invariants
//!
//! - A secret is 32 random bytes, its file is readable by this user only, and it is written
//!   completely or not at all.
//! - A file that is not as it was created is an error and is left untouched: replacing it would
//!   make what it protects unreadable.

use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;

use super::ConfigError;
use lucid_types::secret::{Secret, Zeroizing};

/// Reads the secret in a file of this machine. Creates it, from 32 random bytes, if it does not
/// exist.
pub(super) fn secret_file(path: &Path) -> Result<Secret, ConfigError> {
    let failed = |source: io::Error| ConfigError::SecretFile {
        path: path.to_owned(),
        source,
    };
    if let Some(secret) = read_secret_file(path)? {
        return Ok(secret);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let secret = random_hex().map_err(failed)?;
    // Written to a temporary file (mode 0600 from the start), then linked into place if nothing is
    // there: a crash leaves no half-written secret, and of two servers that start at once one wins.
    let mut file = tempfile::Builder::new()
        .prefix(".secret-")
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(secret.as_bytes())
        .and_then(|()| file.as_file().sync_all())
        .map_err(failed)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(Secret::new(secret.as_str())),
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            read_secret_file(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
        }
        Err(error) => Err(failed(error.error)),
    }
}

fn read_secret_file(path: &Path) -> Result<Option<Secret>, ConfigError> {
    let failed = |source: io::Error| ConfigError::SecretFile {
        path: path.to_owned(),
        source,
    };
    // No symbolic link: whoever could put one there would choose the secret. Non-blocking, so that
    // a pipe in its place is an error instead of a server that never starts.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::OpenSecretFile {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(String::new());
    let read = file.take(1024).read_to_string(&mut text);
    let secret = text.trim();
    if !metadata.is_file()
        || read.is_err()
        || secret.len() != 64
        || !secret.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Err(ConfigError::BadSecretFile {
            path: path.to_owned(),
        });
    }
    Ok(Some(Secret::from(secret)))
}

fn random_hex() -> io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    OsRng
        .try_fill_bytes(&mut bytes[..])
        .map_err(io::Error::other)?;
    let digits = b"0123456789abcdef";
    let mut text = Zeroizing::new(String::with_capacity(64));
    for byte in bytes.iter() {
        text.push(char::from(digits[usize::from(byte >> 4)]));
        text.push(char::from(digits[usize::from(byte & 15)]));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const LONG: &str = "a-secret-that-is-long-enough-for-hs256";

    fn below(folder: &Path, pairs: &[(&'static str, &'static str)]) -> Config {
        let mut all = pairs.to_vec();
        let path = folder.to_str().unwrap();
        all.push(("WORKSPACE_BASE_PATH", path));
        Config::from_pairs(all).unwrap()
    }

    #[test]
    fn local_mode_makes_its_secret_once_for_this_user_only() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("a/storage");
        let first = below(&base, &[]).keys().unwrap();
        let second = below(&base, &[]).keys().unwrap();
        let jwt = first.jwt.unwrap();
        assert_eq!(jwt.expose(), second.jwt.unwrap().expose());
        assert_eq!(first.seal.expose(), jwt.expose());
        assert_eq!(jwt.len(), 64);
        let mode = std::fs::metadata(base.join("local-secret"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&base).unwrap().count(), 1);
    }

    #[test]
    fn with_a_jwt_secret_only_sealing_may_need_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let set = below(
            folder.path(),
            &[
                ("SUPABASE_JWT_SECRET", LONG),
                ("ENCRYPTION_KEY", "another-long-secret"),
            ],
        );
        let keys = set.keys().unwrap();
        assert_eq!(
            (keys.jwt.unwrap().expose(), keys.seal.expose()),
            (LONG, "another-long-secret")
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let keys = below(folder.path(), &[("SUPABASE_JWT_SECRET", LONG)])
            .keys()
            .unwrap();
        assert_eq!(keys.jwt.unwrap().expose(), LONG);
        assert_eq!(
            keys.seal.expose(),
            std::fs::read_to_string(folder.path().join("seal-secret")).unwrap()
        );
    }

    #[test]
    fn a_secret_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        below(folder.path(), &[]).keys().unwrap();
        let path = folder.path().join("local-secret");
        for mode in [0o640, 0o604, 0o620, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let sentence = below(folder.path(), &[]).keys().unwrap_err().to_string();
            assert!(
                sentence.contains("local-secret can be read by other users"),
                "{sentence}"
            );
        }
    }

    #[test]
    fn a_secret_file_that_is_empty_cut_or_no_file_is_refused_and_left() {
        for content in ["", "abc", &"g".repeat(64), &"a".repeat(65)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("local-secret");
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(
                below(folder.path(), &[]).keys(),
                Err(ConfigError::BadSecretFile { .. })
            ));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("local-secret")).unwrap();
        assert!(matches!(
            below(folder.path(), &[]).keys(),
            Err(ConfigError::SecretFile { .. })
        ));
    }

    #[test]
    fn servers_that_start_at_once_agree_on_one_secret() {
        let folder = tempfile::tempdir().unwrap();
        let secrets: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        below(folder.path(), &[])
                            .keys()
                            .unwrap()
                            .jwt
                            .unwrap()
                            .expose()
                            .to_owned()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
