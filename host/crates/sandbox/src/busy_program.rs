//! Starts of a program that was written a moment ago.

use std::io::{self, ErrorKind};
use std::time::Duration;

/// How often to retry, and the pause between tries.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Starts a program, again while it is still open for writing: in a child of another thread that has not
/// called exec yet. Blocks.
pub(super) fn retry<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..TRIES {
        match start() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                std::thread::sleep(PAUSE);
            }
            started => return started,
        }
    }
    start()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_that_is_still_open_for_writing_is_started_once_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        std::fs::copy("/bin/true", &program).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let mut writer = Some(File::options().append(true).open(&program).unwrap());
        let mut tries = 0;
        let ran = retry(|| {
            tries += 1;
            let ran = Command::new(&program).output();
            writer.take();
            ran
        });
        assert!(ran.unwrap().status.success());
        assert!(tries > 1, "it was not busy");
    }
}
