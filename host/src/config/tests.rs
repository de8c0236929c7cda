//! How settings are read, which are refused, and which are never shown.

use std::os::unix::ffi::OsStringExt;

use super::parse::quoted_value;
use super::*;

const LONG: &str = "a-secret-that-is-long-enough-for-hs256";

fn config(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_pairs(pairs.iter().copied())
}

fn good(pairs: &[(&str, &str)]) -> Config {
    config(pairs).unwrap()
}

fn refused(name: &str, value: &str) -> String {
    let sentence = config(&[("SUPABASE_JWT_SECRET", LONG), (name, value)])
        .unwrap_err()
        .to_string();
    assert!(sentence.contains(name), "{sentence}");
    assert_eq!(sentence.lines().count(), 1, "{sentence}");
    sentence
}

#[test]
fn with_nothing_set_it_is_local_and_has_the_defaults() {
    let config = good(&[]);
    assert!(config.local && config.jwt_secret.is_none());
    assert_eq!(config.address().to_string(), "127.0.0.1:8000");
    assert_eq!(
        config.allowed_origins,
        AllowedOrigins::List(vec!["http://localhost:3000".to_owned()])
    );
    assert_eq!(config.default_policy, DefaultPolicy::Auto);
    assert_eq!(config.max_iterations, 50);
    assert_eq!(
        (config.session_token_limit, config.session_cost_limit),
        (None, None)
    );
    assert_eq!(config.conversation_timeout, Duration::from_secs(1800));
    assert_eq!(config.session_grace, Duration::from_secs(300));
    assert_eq!(config.workspace_retention, Duration::from_secs(86_400));
    assert_eq!(config.drain_time, Duration::ZERO);
    assert_eq!(config.shutdown_timeout, Duration::from_secs(25));
    assert_eq!(config.max_sessions_per_user, 20);
    assert_eq!(config.sandbox_backend, SandboxBackend::Auto);
    assert_eq!(config.sandbox_network, SandboxNetwork::Proxy);
    assert_eq!(config.sandbox_private_hosts, PrivateHosts::default());
    assert!(config.sandbox_direct.is_empty());
    assert_eq!(config.sandbox_memory_limit, 2 << 30);
    assert_eq!(config.sandbox_disk_limit, 10 << 30);
    assert_eq!(config.sandbox_file_limit, 500_000);
    assert_eq!(config.disk_reserve, 256 << 20);
    assert_eq!(config.user_log_rate, Some(32 << 20));
    assert_eq!(config.user_log_limit, Some(4 << 30));
    assert!(!config.sandbox_allow_local);
    assert_eq!(config.sandbox_image, "lucid-sandbox:bookworm");
    assert_eq!(config.sandbox_cpu_limit, 1.0);
    assert_eq!(config.sandbox_container_prefix, "lucid-sandbox-");
    assert_eq!(config.sandbox_pool_size, 2);
    assert_eq!(
        (
            config.docker_host,
            config.docker_network,
            config.host_workspace_path
        ),
        (None, None, None)
    );
    assert_eq!(config.workspace_mount_path, "/workspace");
    assert_eq!(config.workspace_base_path, PathBuf::from("./storage"));
    assert!(config.allow_private_repositories);
    assert_eq!(config.git_clone_depth, Some(20));
    assert_eq!(config.git_size_limit, 1 << 30);
    assert_eq!(config.git_timeout, Duration::from_secs(600));
    assert!(!config.git_allow_owner);
    assert_eq!(config.git_push_branches.to_string(), "lucid/*");
    assert_eq!(config.mock_step_delay, Duration::from_millis(1500));
    assert_eq!(config.log_format, LogFormat::Text);
    assert_eq!(config.plugin_log_level, None);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn with_a_jwt_secret_it_serves_others() {
    let config = good(&[("SUPABASE_JWT_SECRET", LONG)]);
    assert!(!config.local && !config.allow_private_repositories);
    assert_eq!(config.address().to_string(), "0.0.0.0:8000");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn with_an_identity_providers_keys_it_serves_others_too() {
    let of = |pairs: &[(&str, &str)]| good(pairs).jwks_url.unwrap().to_string();
    let config = good(&[("SUPABASE_URL", "https://project.example.co")]);
    assert!(!config.local && config.jwt_secret.is_none() && !config.allow_private_repositories);
    assert_eq!(config.address().to_string(), "0.0.0.0:8000");
    assert_eq!(config.warnings, Vec::<String>::new());
    for (given, url) in [
        (
            "https://project.example.co/",
            "https://project.example.co/auth/v1/.well-known/jwks.json",
        ),
        (
            "http://kong:8000/supabase",
            "http://kong:8000/supabase/auth/v1/.well-known/jwks.json",
        ),
    ] {
        assert_eq!(of(&[("SUPABASE_URL", given)]), url);
    }
    let written = ("SUPABASE_JWKS_URL", "https://id.example.com/keys");
    for pairs in [
        &[written][..],
        &[written, ("SUPABASE_URL", "https://project.example.co")],
    ] {
        assert_eq!(of(pairs), "https://id.example.com/keys");
    }
    for value in [
        "http://203.0.113.7/keys",
        "https://169.254.169.254/keys",
        "ftp://id.example.com/keys",
        "nonsense",
    ] {
        refused("SUPABASE_JWKS_URL", value);
        refused("SUPABASE_URL", value);
    }
}

#[test]
fn git_settings_are_read_and_a_depth_of_zero_is_all_of_the_history() {
    let config = good(&[
        ("GIT_CLONE_DEPTH", "0"),
        ("GIT_SIZE_LIMIT", "500m"),
        ("GIT_TIMEOUT", "30"),
        ("GIT_ALLOW_OWNER", "true"),
        ("GIT_PUSH_BRANCHES", " lucid/*, main "),
    ]);
    assert_eq!(config.git_clone_depth, None);
    assert_eq!(config.git_size_limit, 500 << 20);
    assert_eq!(config.git_timeout, Duration::from_secs(30));
    assert!(config.git_allow_owner);
    assert_eq!(config.git_push_branches.to_string(), "lucid/*, main");
    refused("GIT_CLONE_DEPTH", "-1");
    refused("GIT_SIZE_LIMIT", "1k");
    refused("GIT_TIMEOUT", "0");
    refused("GIT_ALLOW_OWNER", "maybe");
    refused("GIT_PUSH_BRANCHES", "lucid/*/x");
}

#[test]
fn what_containers_are_made_with_is_read() {
    let config = good(&[
        ("SANDBOX_BACKEND", "docker"),
        (
            "SANDBOX_IMAGE",
            "nikolaik/python-nodejs:python3.11-nodejs20",
        ),
        ("SANDBOX_CPU_LIMIT", "0.5"),
        ("SANDBOX_CONTAINER_PREFIX", "acme-"),
        ("SANDBOX_POOL_SIZE", "0"),
        ("DOCKER_HOST", "tcp://10.0.0.5:2375"),
        ("SANDBOX_NETWORK", "host"),
        ("DOCKER_NETWORK", "agents"),
        ("HOST_WORKSPACE_PATH", "/srv/lucid/"),
    ]);
    assert_eq!(config.sandbox_backend, SandboxBackend::Docker);
    assert_eq!(
        config.sandbox_image,
        "nikolaik/python-nodejs:python3.11-nodejs20"
    );
    assert_eq!(config.sandbox_cpu_limit, 0.5);
    assert_eq!(config.sandbox_container_prefix, "acme-");
    assert_eq!(config.sandbox_pool_size, 0);
    assert_eq!(config.docker_host.as_deref(), Some("tcp://10.0.0.5:2375"));
    assert_eq!(config.docker_network.as_deref(), Some("agents"));
    assert_eq!(
        config.host_workspace_path,
        Some(PathBuf::from("/srv/lucid"))
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn commands_without_a_sandbox_are_warned_of() {
    for setting in [
        ("SANDBOX_ALLOW_LOCAL", "true"),
        ("SANDBOX_BACKEND", "local"),
    ] {
        let warnings = good(&[setting]).warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains("without a sandbox"),
            "{warnings:?}"
        );
    }
}

#[test]
fn local_mode_listens_on_a_loopback_address_only() {
    for host in [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "[::1]",
        "localhost",
        "::ffff:127.0.0.1",
    ] {
        assert!(config(&[("HOST", host)]).is_ok(), "{host}");
    }
    for host in ["0.0.0.0", "::", "192.168.1.4"] {
        let sentence = config(&[("HOST", host)]).unwrap_err().to_string();
        assert!(
            sentence.contains(host) && sentence.contains("set SUPABASE_JWT_SECRET"),
            "{sentence}"
        );
        assert!(config(&[("HOST", host), ("SUPABASE_JWT_SECRET", LONG)]).is_ok());
    }
}

#[test]
fn an_empty_value_is_not_set() {
    let config = good(&[
        ("PORT", ""),
        ("SUPABASE_JWT_SECRET", "  "),
        ("SUPABASE_URL", ""),
        ("HOST", " "),
    ]);
    assert!(config.local);
    assert_eq!(config.port, 8000);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn what_is_set_is_read() {
    let config = good(&[
        ("PORT", " 9001 "),
        ("LLM_BASE_URL", "http://localhost:11434/v1"),
        ("LLM_MODEL", "qwen/qwen3:8b"),
        ("LLM_API_KEY", " key "),
        ("DEFAULT_MODEL_PROVIDER", "OpenAI"),
        ("DEFAULT_POLICY", "Mock"),
        ("MAX_ITERATIONS", "7"),
        ("CONVERSATION_TIMEOUT", "12.5"),
        ("SANDBOX_BACKEND", "landlock"),
        ("SANDBOX_NETWORK", "none"),
        ("WORKSPACE_MOUNT_PATH", "/work/space/"),
        ("MOCK_STEP_DELAY_SECONDS", "0"),
        ("ALLOW_PRIVATE_REPOSITORIES", "no"),
        ("LOG_FORMAT", "json"),
        ("PLUGIN_LOG_LEVEL", "Debug"),
        ("PATH", "/usr/bin"),
    ]);
    assert_eq!(config.port, 9001);
    assert_eq!(
        config.models.base_url.unwrap().as_str(),
        "http://localhost:11434/v1"
    );
    assert_eq!(config.models.model.unwrap(), "qwen/qwen3:8b");
    assert_eq!(config.models.api_key.unwrap().expose(), "key");
    assert_eq!(config.models.default_provider.unwrap(), "openai");
    assert_eq!(config.default_policy, DefaultPolicy::Mock);
    assert_eq!(config.max_iterations, 7);
    assert_eq!(config.conversation_timeout, Duration::from_millis(12_500));
    assert_eq!(config.sandbox_backend.to_string(), "landlock");
    assert_eq!(config.sandbox_network, SandboxNetwork::None);
    assert_eq!(config.workspace_mount_path, "/work/space");
    assert_eq!(config.mock_step_delay, Duration::ZERO);
    assert!(!config.allow_private_repositories);
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.plugin_log_level, Some(PluginLogLevel::Debug));
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_value_that_is_not_allowed_is_one_sentence_that_names_it() {
    for (name, values) in [
        ("PORT", &["65536", "-1", "+80", "http", "80 80", "8\n0"][..]),
        ("HOST", &["example.com", "127.0.0.1:80", "1.2.3"]),
        (
            "ALLOWED_ORIGINS",
            &[
                "*, http://a",
                "a.example",
                "ftp://a",
                "http://a/b",
                "http://u@a",
                "https://*.a",
                ",",
            ],
        ),
        ("JWT_AUDIENCE", &[",", "a b", "a,b\u{7}c"]),
        ("JWT_ISSUER", &["a b", "https://id.example\nx"]),
        ("LLM_BASE_URL", &["nonsense", "file:///etc", "http://"]),
        ("ANTHROPIC_BASE_URL", &["nonsense"]),
        ("MODEL_OUTAGE_PATIENCE", &["soon", "-1", "2d", "5 x"]),
        ("LLM_MODEL", &["a b", "a\tb"]),
        ("LLM_MODELS", &[",", "a b", "a,b c"]),
        ("SESSION_TOKEN_LIMIT", &["0", "1.5", "many", "-1"]),
        (
            "SESSION_COST_LIMIT",
            &["0", "$1", "-1", "1.", ".5", "0.0000001", "1e3"],
        ),
        ("DEFAULT_MODEL_PROVIDER", &["open ai", "../x"]),
        ("DEFAULT_PROVIDER", &["open ai"]),
        ("DEFAULT_POLICY", &["agent"]),
        ("MAX_ITERATIONS", &["0", "10001", "1.5", "many"]),
        (
            "CONVERSATION_TIMEOUT",
            &["0", "-1", "inf", "NaN", "1e9", "30x", "1m1m", "31d"],
        ),
        ("SESSION_GRACE_SECONDS", &["-1", "86401", "nan"]),
        ("WORKSPACE_RETENTION", &["-1", "31536001", "forever"]),
        ("METRICS_LISTEN", &["9464", "localhost:9464", "127.0.0.1"]),
        ("DRAIN_TIME", &["-1", "3601", "soon"]),
        ("SHUTDOWN_TIMEOUT", &["0", "3601", "soon"]),
        ("MAX_SESSIONS_PER_USER", &["0", "x"]),
        ("SANDBOX_BACKEND", &["podman", "on"]),
        ("SANDBOX_NETWORK", &["bridge"]),
        ("SANDBOX_FILE_LIMIT", &["99", "2000001", "many"]),
        (
            "SANDBOX_PRIVATE_HOSTS",
            &["http://a", "a b", "a:b", "10.0.0.0/8"],
        ),
        ("SANDBOX_DIRECT", &["icmp", "tcp:0", "udp:9-1", "tcp;udp"]),
        (
            "SANDBOX_MEMORY_LIMIT",
            &[
                "2",
                "1k",
                "2x",
                "g",
                "-2g",
                "99t",
                "1..5g",
                "1.g",
                "99999999999999999999g",
            ],
        ),
        ("SANDBOX_DISK_LIMIT", &["0", "1023k", "2x", "1025t", "much"]),
        ("DISK_RESERVE", &["-1", "2x", "1025t", "none"]),
        ("USER_LOG_RATE", &["-1", "1k", "1025t", "none"]),
        ("USER_LOG_LIMIT", &["-1", "1k", "1025t", "none"]),
        ("SANDBOX_ALLOW_LOCAL", &["perhaps"]),
        ("SANDBOX_IMAGE", &["-v", "a b", "a\nb"]),
        ("SANDBOX_CPU_LIMIT", &["0", "-1", "NaN", "inf", "all"]),
        ("SANDBOX_UIDS", &["on", "1000", "0-99", "9-5"]),
        ("SANDBOX_CONTAINER_PREFIX", &["-a", "a/b", "a b", "é"]),
        ("SANDBOX_POOL_SIZE", &["-1", "1001", "two"]),
        ("DOCKER_HOST", &["docker.sock", "ssh://a@b", "unix:///a\nb"]),
        ("DOCKER_NETWORK", &["-a", "a:b"]),
        ("HOST_WORKSPACE_PATH", &["workspace", "/a/../b", "/a:b"]),
        (
            "WORKSPACE_MOUNT_PATH",
            &["workspace", "/", "/a/../b", "/a//b", "/a:b", "/a\nb"],
        ),
        ("ALLOW_PRIVATE_REPOSITORIES", &["maybe", "2"]),
        ("MOCK_STEP_DELAY_SECONDS", &["-0.5", "61", "slow"]),
        ("LOG_FORMAT", &["xml"]),
        ("PLUGIN_LOG_LEVEL", &["loud", "1"]),
    ] {
        for value in values {
            let sentence = refused(name, value);
            assert!(sentence.contains(&quoted_value(value)), "{sentence}");
            assert!(sentence.contains("must be"), "{sentence}");
        }
    }
    assert!(refused("PORT", &"9".repeat(5000)).len() < 250);
}

#[test]
fn a_secret_is_never_shown_in_an_error_or_in_print() {
    for name in [
        "INTERNAL_API_KEY",
        "ANTHROPIC_API_KEY",
        "GOOGLE_API_KEY",
        "OPENAI_API_KEY",
        "LLM_API_KEY",
    ] {
        for value in ["hunter2 hunter2", "hunter2\nx", "hunter2é"] {
            assert!(!refused(name, value).contains("hunter2"));
        }
    }
    for value in [
        "https://u:hunter2@host/v1",
        "https://host/v1?key=hunter2",
        "https://host/#hunter2",
    ] {
        assert!(!refused("LLM_BASE_URL", value).contains("hunter2"));
    }
    let all = [
        "SUPABASE_JWT_SECRET",
        "ENCRYPTION_KEY",
        "INTERNAL_API_KEY",
        "ANTHROPIC_API_KEY",
        "GOOGLE_API_KEY",
        "OPENAI_API_KEY",
        "LLM_API_KEY",
    ];
    let config = good(&all.map(|name| (name, "hunter2-is-long-enough")));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn chats_are_kept_in_supabase_where_all_of_it_is_set() {
    let jwt = ("SUPABASE_JWT_SECRET", LONG);
    let url = ("SUPABASE_URL", "https://abc.supabase.co");
    let anon = ("SUPABASE_ANON_KEY", "hunter2-anon");
    for name in ["SUPABASE_SERVICE_KEY", "SUPABASE_SERVICE_ROLE_KEY"] {
        let config = good(&[jwt, url, anon, (name, "hunter2-service")]);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert!(!format!("{config:?}").contains("hunter2"));
        let project = config.supabase.unwrap();
        assert_eq!(project.url.as_str(), "https://abc.supabase.co/");
        assert_eq!(project.anon_key.expose(), "hunter2-anon");
        assert_eq!(project.service_key.unwrap().expose(), "hunter2-service");
    }
    let project = good(&[jwt, url, anon]).supabase.unwrap();
    assert!(project.service_key.is_none());

    // The URL alone gives the location of the keys for tokens.
    let keys_alone = good(&[jwt, url]);
    assert!(keys_alone.supabase.is_none() && keys_alone.warnings.is_empty());

    let bad = |pairs: &[(&str, &str)]| config(pairs).unwrap_err().to_string();
    let unfit = bad(&[jwt, url, ("SUPABASE_ANON_KEY", "hunter2 hunter2")]);
    assert!(
        unfit.contains("SUPABASE_ANON_KEY") && !unfit.contains("hunter2"),
        "{unfit}"
    );
    let no_url = bad(&[jwt, anon, ("SUPABASE_URL", "abc.supabase.co")]);
    assert!(no_url.starts_with("SUPABASE_URL is"), "{no_url}");
}

#[test]
fn half_a_supabase_is_said_and_not_shown() {
    let jwt = ("SUPABASE_JWT_SECRET", LONG);
    let url = ("SUPABASE_URL", "https://abc.supabase.co");
    let anon = ("SUPABASE_ANON_KEY", "hunter2-anon");
    for (pairs, kept, said) in [
        (
            vec![jwt, anon],
            false,
            "SUPABASE_ANON_KEY is set without effect",
        ),
        (
            vec![jwt, url, ("SUPABASE_SERVICE_KEY", "hunter2")],
            false,
            "SUPABASE_SERVICE_KEY is set without effect",
        ),
        (
            vec![jwt, anon, ("SUPABASE_URL", "http://10.0.0.5:8000")],
            true,
            "is http",
        ),
    ] {
        let config = good(&pairs);
        assert_eq!(config.supabase.is_some(), kept, "{pairs:?}");
        assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
        let warning = &config.warnings[0];
        assert!(
            warning.contains(said) && !warning.contains("hunter2"),
            "{warning}"
        );
    }
    let here = good(&[jwt, anon, ("SUPABASE_URL", "http://127.0.0.1:54321")]);
    assert!(here.warnings.is_empty() && here.supabase.is_some());
}

#[test]
fn landlock_for_several_users_is_warned_about() {
    let landlock = ("SANDBOX_BACKEND", "landlock");
    let many = good(&[("SUPABASE_JWT_SECRET", LONG), landlock]);
    assert_eq!(many.warnings.len(), 1, "{:?}", many.warnings);
    assert!(many.warnings[0].starts_with("SANDBOX_BACKEND is landlock"));
    assert!(
        good(&[landlock]).warnings.is_empty(),
        "local mode has one user"
    );
}

#[test]
fn short_secrets_are_warned_about_where_nobody_else_is_served_or_others_have_them_too() {
    let short = "hunter2";
    let local = good(&[("ENCRYPTION_KEY", short), ("INTERNAL_API_KEY", short)]);
    assert_eq!(local.warnings.len(), 2, "{:?}", local.warnings);
    let served = good(&[
        ("SUPABASE_JWT_SECRET", "a-secret-of-20-bytes"),
        ("ENCRYPTION_KEY", short),
        ("INTERNAL_API_KEY", "a-key-of-16-byte"),
    ]);
    assert_eq!(served.warnings.len(), 2, "{:?}", served.warnings);
}

#[test]
fn secrets_that_can_be_guessed_are_refused_where_others_are_served() {
    let keys = ("SUPABASE_URL", "https://project.example.co");
    for (name, others) in [
        ("SUPABASE_JWT_SECRET", &[][..]),
        ("SUPABASE_JWT_SECRET", &[keys]),
        ("INTERNAL_API_KEY", &[keys]),
        ("INTERNAL_API_KEY", &[("SUPABASE_JWT_SECRET", LONG)]),
    ] {
        let with = |secret| config(&[others, &[(name, secret)]].concat());
        let sentence = with("hunter2-15bytes").unwrap_err().to_string();
        let expected = format!("{name} cannot be used: it must be at least 16 bytes");
        assert!(sentence.starts_with(&expected), "{sentence}");
        assert!(
            !sentence.contains("hunter2") && !sentence.ends_with('.'),
            "{sentence}"
        );
        assert!(with("hunter2-16-bytes").is_ok());
    }
}

#[test]
fn what_tokens_must_say_is_read() {
    let config = good(&[]);
    assert!(config.jwt_audiences.is_empty() && config.jwt_issuer.is_none());
    let config = good(&[
        ("JWT_AUDIENCE", " lucid, https://lucid.example ,,"),
        ("JWT_ISSUER", " https://id.example/realms/a "),
    ]);
    assert_eq!(config.jwt_audiences, ["lucid", "https://lucid.example"]);
    assert_eq!(
        config.jwt_issuer.as_deref(),
        Some("https://id.example/realms/a")
    );
}

#[test]
fn a_supabase_projects_keys_are_told_from_another_identity_providers() {
    let of = |name, url| is_supabase(&good(&[(name, url)]).jwks_url.unwrap());
    assert!(of("SUPABASE_URL", "https://project.example.co"));
    assert!(of("SUPABASE_URL", "http://kong:8000/supabase"));
    let keys = "https://project.example.co/auth/v1/.well-known/jwks.json";
    assert!(of("SUPABASE_JWKS_URL", keys));
    for other in [
        "https://id.example.com/.well-known/jwks.json",
        "https://id.example.com/keys",
        "https://id.example.com/",
    ] {
        assert!(!of("SUPABASE_JWKS_URL", other), "{other}");
    }
}

#[test]
fn the_older_name_of_the_provider_counts_where_the_newer_is_not_set() {
    assert_eq!(
        good(&[("DEFAULT_PROVIDER", "openai")])
            .models
            .default_provider
            .unwrap(),
        "openai"
    );
    let both = good(&[
        ("DEFAULT_PROVIDER", "google"),
        ("DEFAULT_MODEL_PROVIDER", "openai"),
    ]);
    assert_eq!(both.models.default_provider.unwrap(), "openai");
    assert_eq!(both.warnings.len(), 1);
}

#[test]
fn each_provider_has_settings_of_its_own() {
    let config = good(&[
        ("ANTHROPIC_API_KEY", "one"),
        ("ANTHROPIC_BASE_URL", "https://a.example/x"),
        ("GOOGLE_MODEL", "g"),
        ("LLM_MODELS", "anthropic/a, b ,,c"),
    ]);
    let anthropic = config.models.of("anthropic").unwrap();
    assert_eq!(anthropic.api_key.as_ref().unwrap().expose(), "one");
    assert_eq!(
        anthropic.base_url.as_ref().unwrap().as_str(),
        "https://a.example/x"
    );
    let google = config.models.of("google").unwrap();
    assert!(google.api_key.is_none() && google.base_url.is_none());
    assert_eq!(google.model.as_deref(), Some("g"));
    assert_eq!(config.models.allowed.unwrap(), ["anthropic/a", "b", "c"]);
    let both = [
        ("OPENAI_BASE_URL", "https://a.example"),
        ("LLM_BASE_URL", "https://b.example"),
    ];
    assert_eq!(good(&both).warnings.len(), 1);
}

#[test]
fn a_cost_limit_is_read_in_dollars_and_kept_in_millionths() {
    for (text, micros) in [("2.50", 2_500_000), ("0.000001", 1), ("7", 7_000_000)] {
        let config = good(&[
            ("SESSION_COST_LIMIT", text),
            ("SESSION_TOKEN_LIMIT", "90000"),
        ]);
        assert_eq!(config.session_cost_limit, Some(micros), "{text}");
        assert_eq!(config.session_token_limit, Some(90_000));
    }
}

#[test]
fn origins_are_written_as_a_browser_writes_them() {
    let list = |text| good(&[("ALLOWED_ORIGINS", text)]).allowed_origins;
    let expected = ["https://app.example.com", "http://localhost:3000"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(
        list("https://App.example.com:443/, http://localhost:3000,,https://app.example.com"),
        AllowedOrigins::List(expected)
    );
    assert_eq!(list("*"), AllowedOrigins::Any);
}

#[test]
fn sizes_are_read_as_docker_writes_them() {
    for (text, bytes) in [
        ("2g", 2 << 30),
        ("2G", 2 << 30),
        ("512m", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5gb", 1536 << 20),
        ("0.1g", 107_374_182),
        ("67108864", 64 << 20),
        ("1t", 1 << 40),
        ("65536k", 64 << 20),
    ] {
        assert_eq!(
            good(&[("SANDBOX_MEMORY_LIMIT", text)]).sandbox_memory_limit,
            bytes,
            "{text}"
        );
    }
}

fn os(pairs: &[(&str, &[u8])]) -> std::vec::IntoIter<(OsString, OsString)> {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from_vec(value.to_vec())))
        .collect();
    pairs.into_iter()
}

#[test]
fn the_environment_wins_over_the_file_but_an_empty_variable_does_not() {
    let file = "# comment\nPORT=1\nexport MAX_ITERATIONS=3 # three\nLLM_MODEL='a$b'\nOTHER=x\n";
    let config = Config::merge(
        Some(file),
        os(&[("PORT", b"2"), ("MAX_ITERATIONS", b""), ("X", b"\xff")]),
    )
    .unwrap();
    assert_eq!((config.port, config.max_iterations), (2, 3));
    assert_eq!(config.models.model.unwrap(), "a$b");
}

#[test]
fn a_variable_of_ours_that_is_no_text_is_refused() {
    let sentence = Config::merge(None, os(&[("LLM_API_KEY", b"\xff")]))
        .unwrap_err()
        .to_string();
    assert!(sentence.starts_with("LLM_API_KEY"), "{sentence}");
}

#[test]
fn the_machines_network_is_for_commands_of_one_user_and_its_settings_for_their_network() {
    let host = [("SANDBOX_NETWORK", "host"), ("DOCKER_NETWORK", "agents")];
    let warnings = good(&host).warnings;
    assert!(
        warnings.len() == 1 && warnings[0].contains("each other"),
        "{warnings:?}"
    );
    let refused = refused("SANDBOX_NETWORK", "host");
    assert!(refused.contains("SANDBOX_PRIVATE_HOSTS"), "{refused}");
    let config = good(&[
        ("SANDBOX_PRIVATE_HOSTS", "registry.corp:443"),
        ("DOCKER_NETWORK", "agents"),
    ]);
    assert_eq!(
        config.sandbox_private_hosts,
        "registry.corp:443".parse().unwrap()
    );
    assert!(config.warnings[0].contains("DOCKER_NETWORK has no effect"));
    let config = good(&[("SANDBOX_NETWORK", "none"), ("SANDBOX_PRIVATE_HOSTS", "a")]);
    assert!(config.warnings[0].contains("SANDBOX_PRIVATE_HOSTS has no effect"));
}

#[test]
fn ports_are_opened_beside_the_proxy_and_with_no_other_network() {
    let opened = good(&[("SANDBOX_DIRECT", "tcp:5432, udp")]);
    assert_eq!(opened.sandbox_direct, "tcp:5432,udp".parse().unwrap());
    let refused = config(&[("SANDBOX_NETWORK", "none"), ("SANDBOX_DIRECT", "udp")]);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("SANDBOX_NETWORK=proxy"), "{refused}");
}
