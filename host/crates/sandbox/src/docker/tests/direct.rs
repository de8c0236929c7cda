//! Programs in a container that speak for themselves and not with the proxy.

use super::*;
use crate::tests::direct::{
    DirectSandbox, Servers, has_no_rights_over_its_network, is_refused_at_once,
    reaches_what_is_opened, resolves_names,
};

fn direct(data: &Data) -> crate::SandboxSettings {
    let mut settings = data.settings(|_| {});
    settings.network = Network::Proxy;
    settings.direct = true;
    settings
}

async fn host(settings: crate::SandboxSettings) -> Sandboxes {
    let host = Box::pin(Sandboxes::detect(BackendChoice::Docker, settings, EXEC));
    let host = host.await.unwrap();
    assert_eq!(host.remark(), None, "the engine's machine has /dev/net/tun");
    host
}

#[tokio::test]
async fn a_program_in_a_container_reaches_what_is_opened_and_is_refused_the_rest() {
    let (Some(_), Some(servers)) = (image(), Servers::start()) else {
        return;
    };
    let data = Data::new();
    let host = host(direct(&data)).await;
    let sandbox = data.start(&host, "one").await;
    let direct = DirectSandbox::new(sandbox, servers.rules(), "alice");
    reaches_what_is_opened(&direct, &servers).await;
    resolves_names(&direct).await;
    is_refused_at_once(&direct, &servers).await;
    has_no_rights_over_its_network(&direct).await;
    let user = shell(&direct.sandbox, "id -u; id -G").await.output;
    assert!(!user.lines().any(|id| id == "0"), "{user}");
    direct.sandbox.close().await;
}

#[tokio::test]
async fn a_container_that_is_taken_over_has_its_interface_with_the_next_host() {
    let (Some(_), Some(servers)) = (image(), Servers::start()) else {
        return;
    };
    let data = Data::new();
    let (first, again) = (direct(&data), direct(&data));
    let workspace = data.workspace("one");
    die(async move || {
        let host = host(first).await;
        let spec = SandboxSpec {
            session: session_id("one"),
            workspace: workspace.host_path(),
            repository: None,
        };
        let sandbox = Box::pin(host.start(spec)).await.unwrap();
        shell(&sandbox, "setsid sleep 600 & true").await;
        std::mem::forget(sandbox);
        (host, ())
    });
    let host = host(again).await;
    assert_eq!(host.adopt(|_| true).await.unwrap().kept, 1);
    let sandbox = data.start(&host, "one").await;
    let direct = DirectSandbox::new(sandbox, servers.rules(), "alice");
    reaches_what_is_opened(&direct, &servers).await;
    has_no_rights_over_its_network(&direct).await;
    direct.sandbox.close().await;
}
