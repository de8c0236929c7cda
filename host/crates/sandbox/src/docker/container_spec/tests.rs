//! Tests of a container's parameters, without an engine.

use super::*;
use crate::{PROCESSES, UserIdChoice};

fn plan(
    change: impl FnOnce(&mut crate::SandboxSettings, &mut DockerSettings),
) -> ContainerTemplate {
    plan_for([], change)
}

/// The specification for an image with these volumes.
fn plan_for<const N: usize>(
    volumes: [&str; N],
    change: impl FnOnce(&mut crate::SandboxSettings, &mut DockerSettings),
) -> ContainerTemplate {
    let mut own = DockerSettings {
        image: "image".to_owned(),
        ..DockerSettings::default()
    };
    let mut common = crate::SandboxSettings {
        run_dir: "/run".into(),
        memory_bytes: 1 << 30,
        cpus: 2.0,
        processes: PROCESSES,
        users: UserIdChoice::Auto,
        network: Network::None,
        direct: false,
        several_users: false,
        workspace_mount: "/workspace".to_owned(),
        docker: None,
    };
    change(&mut common, &mut own);
    let image = ImageConfig {
        environment: vec!["PATH=/opt/bin".to_owned()],
        volumes: volumes.map(str::to_owned).to_vec(),
    };
    ContainerTemplate::new(&common, &own, "me".to_owned(), Some(2), &image)
}

fn wanted(session: Option<SessionId>) -> ContainerSpec<'static> {
    ContainerSpec {
        name: "box",
        owner: "process",
        transport: None,
        session,
        lucid: Path::new("/data/run/docker/box/lucid"),
        workspace: Path::new("/data/user-1/one"),
    }
}

#[test]
fn a_container_is_locked_down_whatever_the_image_says() {
    let body = plan(|_, _| {})
        .body(&wanted(Some(SessionId::new())))
        .unwrap();
    let host = body.host_config.unwrap();
    assert_eq!(host.memory, Some(1 << 30));
    assert_eq!(host.memory_swap, host.memory);
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!(host.cap_add, None);
    assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
    assert_eq!(host.readonly_rootfs, Some(true));
    assert_eq!(host.privileged, Some(false));
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.init, Some(true));
    assert!(host.pids_limit.is_some_and(|limit| limit > 0));
    let mounts = host.mounts.unwrap();
    let writable: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.read_only == Some(false))
        .map(|mount| mount.target.clone().unwrap())
        .collect();
    assert_eq!(writable, ["/workspace"]);
    let temporary = host.tmpfs.unwrap();
    let options = |name: &str| -> std::collections::BTreeMap<_, _> {
        let value = |options: &str| {
            let value = options.split(',').find_map(|it| it.strip_prefix(name));
            value.unwrap_or("none").to_owned()
        };
        let all = temporary.iter();
        all.map(|(at, options)| (at.clone(), value(options)))
            .collect()
    };
    let of = |home: &str, tmp: &str, var_tmp: &str| {
        let all = [("/home/agent", home), ("/tmp", tmp), ("/var/tmp", var_tmp)];
        all.map(|(at, value)| (at.to_owned(), value.to_owned()))
            .into()
    };
    let sizes = of("268435456", "268435456", "67108864");
    assert_eq!(options("size="), sizes);
    // Files take memory even if nothing is in them.
    assert_eq!(options("nr_inodes="), of("131072", "131072", "32768"));
    assert_eq!(body.entrypoint.unwrap(), [EXEC]);
    assert!(
        !body.user.unwrap().starts_with("0:"),
        "a container runs as root"
    );
    assert!(
        body.env
            .unwrap()
            .contains(&"PATH=/run/lucid/bin:/opt/bin".to_owned())
    );
}

#[test]
fn a_container_with_an_interface_has_what_its_exec_server_gives_up_and_nothing_else() {
    let body = plan(|common, _| {
        common.network = Network::Proxy;
        common.direct = true;
    });
    let body = body.body(&wanted(None)).unwrap();
    let host = body.host_config.unwrap();
    let rights = ["NET_ADMIN", "SETUID", "SETGID", "SETPCAP"];
    assert_eq!(host.cap_add.unwrap(), rights);
    assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
    assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.init, Some(false), "nothing keeps the rights");
    let devices = host.devices.unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].path_on_host.as_deref(), Some(TUNNEL));
    let serve: Serve = serde_json::from_str(&body.cmd.unwrap()[2]).unwrap();
    let user = serve.interface.unwrap().user.unwrap();
    assert_ne!(user, 0);
    assert_eq!(body.user.as_deref(), Some("0:0"), "only until then");
}

#[test]
fn where_an_image_has_volumes_there_is_little_room_and_no_volume() {
    let named = [
        "/var/data/",
        "/opt//a/../b",
        "/tmp",
        "/workspace/",
        "/opt/b",
    ];
    let body = plan_for(named, |_, _| {}).body(&wanted(None)).unwrap();
    let mounts = body.host_config.unwrap().mounts.unwrap();
    let [_, _, small @ ..] = &mounts[..] else {
        panic!("{mounts:?}")
    };
    let targets: Vec<_> = small.iter().map(|mount| mount.target.as_deref()).collect();
    assert_eq!(targets, [Some("/opt/b"), Some("/var/data")]);
    let sizes = small.iter().map(|mount| {
        assert_eq!(mount.typ, Some(MountType::TMPFS));
        let options = mount.tmpfs_options.as_ref();
        options.and_then(|options| options.size_bytes).unwrap()
    });
    // A sixteenth of its memory for all of them.
    assert_eq!(sizes.sum::<i64>(), 1 << 26);
}

#[test]
fn a_container_gives_up_without_a_host_unless_none_can_come() {
    for (transport, gives_up) in [
        (None, true),
        (Some(Transport::Socket), true),
        (Some(Transport::Exec), false),
    ] {
        let wanted = ContainerSpec {
            transport,
            ..wanted(None)
        };
        let command = plan(|_, _| {}).body(&wanted).unwrap().cmd.unwrap();
        assert_eq!(command[..2], ["--connect", SOCKET]);
        let serve: Serve = serde_json::from_str(&command[2]).unwrap();
        assert_eq!(serve.patience_seconds.is_some(), gives_up, "{transport:?}");
    }
}

#[test]
fn labels_say_whose_a_container_is_and_a_waiting_one_is_nobodys() {
    let session = SessionId::new();
    let labels = plan(|_, _| {})
        .body(&wanted(Some(session)))
        .unwrap()
        .labels
        .unwrap();
    for (name, value) in [
        (MANAGED, "true"),
        (INSTANCE, "me"),
        (OWNER, "process"),
        (CONTAINER_LABEL, "box"),
        (SESSION, &session.to_string()),
        (USER, "user-1"),
    ] {
        assert_eq!(labels[name], value);
    }
    let labels = plan(|_, _| {}).body(&wanted(None)).unwrap().labels.unwrap();
    assert!(!labels.contains_key(SESSION) && !labels.contains_key(USER));
}

#[test]
fn a_host_in_a_container_names_the_engines_paths() {
    let template = plan(|_, own| own.host_path = Some(("/data".into(), "/srv/lucid".into())));
    let body = template.body(&wanted(None)).unwrap();
    let sources: Vec<_> = body.host_config.unwrap().mounts.unwrap();
    assert_eq!(
        sources[0].source.as_deref(),
        Some("/srv/lucid/run/docker/box/lucid")
    );
    assert_eq!(sources[1].source.as_deref(), Some("/srv/lucid/user-1/one"));
    let elsewhere = ContainerSpec {
        workspace: Path::new("/elsewhere"),
        ..wanted(None)
    };
    let error = template.body(&elsewhere).unwrap_err().to_string();
    assert!(error.contains("HOST_WORKSPACE_PATH"), "{error}");
}

#[test]
fn the_network_is_the_operators_choice_and_none_is_none() {
    let network = |network, name: Option<&str>| {
        plan(|common, own| {
            common.network = network;
            own.network = name.map(str::to_owned);
        })
        .network
    };
    assert_eq!(network(Network::None, Some("agents")), "none");
    assert_eq!(network(Network::Host, Some("agents")), "agents");
    assert_eq!(network(Network::Host, None), "default");
}

#[test]
fn no_more_processors_are_asked_for_than_there_are() {
    let cpus = |cpus| plan(|common, _| common.cpus = cpus).nano_cpus;
    assert_eq!(cpus(1.5), 1_500_000_000);
    assert_eq!(cpus(64.0), 2_000_000_000);
    assert_eq!(cpus(0.0), 10_000_000);
}

#[test]
fn a_change_of_the_settings_changes_the_shape() {
    let shape = plan(|_, _| {}).fingerprint();
    assert_eq!(plan(|_, _| {}).fingerprint(), shape);
    assert_ne!(
        plan(|common, _| common.memory_bytes += 1).fingerprint(),
        shape
    );
    assert_ne!(plan(|common, _| common.direct = true).fingerprint(), shape);
    assert_ne!(plan(|_, own| own.image.push('2')).fingerprint(), shape);
}

#[test]
fn a_containers_name_is_one_that_an_engine_takes() {
    assert_eq!(plan(|_, _| {}).container_name("a/b c"), "lucid-a-b-c");
}

#[test]
fn a_container_of_an_earlier_build_is_adopted_as_long_as_the_protocol_is_the_same() {
    let template = ContainerTemplate {
        instance: "i".to_owned(),
        prefix: "lucid".to_owned(),
        workspace_mount: "/workspace".to_owned(),
        image: "img".to_owned(),
        path: "/bin".to_owned(),
        volumes: vec!["/v".to_owned()],
        shell: "/bin/sh".to_owned(),
        user: "1:2".to_owned(),
        memory: 3,
        nano_cpus: 4,
        processes: 5,
        network: "none".to_owned(),
        proxy: None,
        direct: false,
        host_path: None,
    };
    // What version 6 of the protocol with the exec server has written so far. It changes with that version.
    assert_eq!(template.fingerprint(), "d15386cf6bff4b70");
}
