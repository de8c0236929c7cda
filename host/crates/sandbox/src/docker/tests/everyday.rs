//! Everyday programs in a container. The tests' small image does not have all of them; with
//! `LUCID_EVERYDAY_IMAGE` the list runs in an image that does.

use super::*;
use crate::tests::everyday;

/// The minimum that the tests' image has.
const MUST: [&str; 9] = [
    "bash",
    "git",
    "python3",
    "script",
    "tmux",
    "curl",
    "ssh-keygen",
    "sqlite3",
    "perl",
];

#[tokio::test]
async fn what_people_run_runs_in_a_container() {
    if image().is_none() {
        return;
    }
    let data = Data::new();
    let mut settings = data.settings(|own| {
        if let Ok(image) = std::env::var("LUCID_EVERYDAY_IMAGE") {
            own.image = image;
        }
    });
    settings.cpus = 2.0;
    settings.processes = 400;
    settings.memory_bytes = 2 << 30;
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC)).await;
    let host = host.unwrap();
    let sandbox = data.start(&host, "one").await;
    let (failed, skipped) = everyday::run(&sandbox).await;
    assert!(failed.is_empty(), "{failed:#?}");
    for needed in MUST {
        assert!(
            !skipped.contains(&needed),
            "the image has no {needed}: bash tests/run installs it"
        );
    }
    sandbox.close().await;
}
