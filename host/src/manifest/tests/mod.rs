//! Valid manifests, the problems reported for invalid ones, and what is loaded from valid ones.

#[cfg(test)]
pub(crate) mod mcp;
#[cfg(test)]
pub(crate) mod tools;

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::fields::ManifestReader;
use super::*;
use super::{plugins, read, registries};
use crate::builtin;
use crate::config::size;
use crate::deployment::load::load;
use lucid_net::egress::KeyInjection;
use lucid_types::digest::{Digest, sha256_hex};
use lucid_wasm::testing::engine;
use lucid_wasm::{Plugin, PluginKind, PluginLimits, Plugins};

fn parse(text: &str) -> Result<Manifest, ManifestProblems> {
    Manifest::parse(Path::new("etc/lucid.toml"), text)
}

/// The reported problems, a line each.
fn wrong(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(manifest) => panic!("taken: {text}\n{manifest:?}"),
        Err(problems) => problems.to_string().lines().map(str::to_owned).collect(),
    }
}

const P: &str = "[policies.p]\ncomponent = \"builtin:coder\"\n";
const V: &str = "[providers.v]\ncomponent = \"builtin:openai\"\n";

#[test]
fn the_example_is_a_manifest_and_has_every_field() {
    let manifest = parse(EXAMPLE).unwrap();
    assert_eq!(manifest.policy_names(), ["coder", "pair", "rehearsal"]);
    let vllm = &manifest.providers["vllm"];
    assert_eq!(vllm.key.name, "VLLM_TOKEN");
    assert!(matches!(vllm.key_place, Some(KeyInjection::Header(_))));
    assert_eq!(vllm.prices.by_model["qwen3-coder"].input, 200_000);
    assert_eq!(vllm.prices.others.as_ref().unwrap().output, 0);
    assert_eq!(
        manifest.providers["anthropic"].key.name,
        "ANTHROPIC_API_KEY"
    );
    let limits = manifest.policies["coder"].limits.limits();
    assert_eq!(
        (limits.fuel, limits.memory_bytes),
        (1_000_000_000, 64 << 20)
    );
    assert_eq!(limits.wall.as_secs(), 5);
    let lists = [
        read::ROOT,
        plugins::PLUGIN,
        plugins::PROVIDER,
        plugins::TOOLS,
        plugins::LIMITS,
        plugins::KEY_PLACE,
        plugins::PRICE,
        plugins::GIT,
        registries::REGISTRY,
        read::DEFAULTS,
        read::ASSIGN,
    ];
    for field in lists.into_iter().flatten() {
        assert!(EXAMPLE.contains(field), "the example has no `{field}`");
    }
}

#[test]
fn an_empty_manifest_stands_for_what_is_built_in() {
    let manifest = parse("# nothing\n").unwrap();
    assert_eq!(manifest.policy_names(), ["coder", "mock"]);
    assert_eq!(manifest.provider_names(), ["anthropic", "google", "openai"]);
    assert_eq!(manifest.git_names(), ["github", "gitlab"]);
    let manifest = parse("[defaults]\npolicy = \"mock\"\nprovider = \"google\"").unwrap();
    assert_eq!(manifest.default_policy.unwrap().value, "mock");
}

#[test]
fn each_thing_that_is_wrong_is_said_with_its_place_and_what_to_do() {
    let after = |head: &str, rest: &str| format!("{head}{rest}");
    for (text, place, says) in [
        // TOML itself, with a column that counts characters.
        ("[policies".to_owned(), "1:10", "not TOML"),
        ("[policies.p]\na = \"ä\" \"".to_owned(), "2:9", "not TOML"),
        (after(P, "component = \"x\""), "3:1", "not TOML"),
        // Names.
        ("[polices.x]".into(), "1:2", "did you mean `policies`?"),
        (after(P, "setings = {}"), "3:1", "did you mean `settings`?"),
        (
            after(V, "baseurl = \"http://x\""),
            "3:1",
            "did you mean `base_url`?",
        ),
        (
            after(P, "zzz = 1"),
            "3:1",
            "there are: component, digest, settings, limits",
        ),
        (
            after(P, "model = \"m\""),
            "3:1",
            "`policies.p` has no field `model`",
        ),
        (
            "[policies.Big]\ncomponent = \"builtin:coder\"".into(),
            "1:11",
            "lower-case",
        ),
        (
            "[policies.auto]\ncomponent = \"builtin:coder\"".into(),
            "1:11",
            "`auto`",
        ),
        ("[policies]".into(), "1:1", "names none"),
        (
            "policies = 3".into(),
            "1:12",
            "must be a table, and this is a whole number",
        ),
        (
            "[git.github]\ncomponent = \"builtin:github\"\ntoken = \"x\"".into(),
            "3:1",
            "`token`",
        ),
        (
            "[git.house]\ncomponent = \"builtin:gitea\"".into(),
            "2:13",
            "there is no built-in git provider `gitea`; did you mean `gitlab`? (there are: github, gitlab)",
        ),
        (
            "[git.house]\ncomponent = \"builtin:gitlab\"\nweb_url = \"the house\"".into(),
            "3:11",
            "must begin with http",
        ),
        (
            "[git.house]\ncomponent = \"builtin:gitlab\"\nweb_url = \"https://u:p@git.example.org\"".into(),
            "3:11",
            "credential",
        ),
        // Components.
        ("[policies.p]".into(), "1:11", "has no `component`"),
        (
            "[policies.p]\ncomponent = 3".into(),
            "2:13",
            "must be a text in quotes",
        ),
        (
            "[policies.p]\ncomponent = \"\"".into(),
            "2:13",
            "the path of a file",
        ),
        (
            "[policies.p]\ncomponent = \"https://x/y.wasm\"".into(),
            "2:13",
            "the path of a file",
        ),
        (
            "[policies.p]\ncomponent = \"builtin:codr\"".into(),
            "2:13",
            "did you mean `coder`?",
        ),
        (
            "[policies.p]\ncomponent = \"builtin:openai\"".into(),
            "2:13",
            "no built-in policy `openai`",
        ),
        (
            "[policies.p]\ncomponent = \"oci://me:secret@x/y:1\"".into(),
            "2:13",
            "a registry is a host",
        ),
        (
            "[policies.p]\ncomponent = \"oci://ghcr.io/team/reviewer\"".into(),
            "2:13",
            "write :TAG",
        ),
        // Registries.
        ("registries = 1".into(), "1:14", "must be a table"),
        (
            "[registries.\"a b\"]".into(),
            "1:13",
            "a registry is a host",
        ),
        (
            "[registries.x]\nusr = \"a\"".into(),
            "2:1",
            "did you mean `user`?",
        ),
        (
            "[registries.x]\nuser = \"a\"".into(),
            "1:13",
            "without the other",
        ),
        (
            "[registries.x]\nuser = \"a:b\"\npassword = \"P\"".into(),
            "2:8",
            "none of them a colon",
        ),
        (
            "[registries.x]\nuser = \"a\"\npassword = \"hunter2\"".into(),
            "3:12",
            "never stands in a manifest",
        ),
        (
            "[registries.x]\nuser = \"a\"\npassword = \"ENCRYPTION_KEY\"".into(),
            "3:12",
            "this host's own secret",
        ),
        (
            "[registries.x]\nplain_http = \"yes\"".into(),
            "2:14",
            "must be true or false",
        ),
        (
            "[registries.x]\n[registries.X]".into(),
            "1:13",
            "is there twice",
        ),
        (
            after(P, "digest = \"sha256:abc\""),
            "3:10",
            "64 hexadecimal digits",
        ),
        (after(P, "settings = [1]"), "3:12", "must be a table"),
        (
            after(P, "settings = { a = 2020-01-01 }"),
            "3:18",
            "settings are JSON",
        ),
        (
            after(P, "settings = { a = [1, { b = nan }] }"),
            "3:28",
            "settings are JSON",
        ),
        // PluginLimits.
        (
            after(P, "limits = { fuel = 10 }"),
            "3:19",
            "from 1000000 to",
        ),
        (
            after(P, "limits = { fuel = \"1g\" }"),
            "3:19",
            "a whole number",
        ),
        (
            after(P, "limits = { memory = \"1t\" }"),
            "3:21",
            "to 536870912 bytes",
        ),
        (
            after(P, "limits = { output = \"much\" }"),
            "3:21",
            "from 65536",
        ),
        (
            after(P, "limits = { time = 0 }"),
            "3:19",
            "from 0.1 to 60 seconds",
        ),
        (
            after(P, "limits = { memroy = 1 }"),
            "3:12",
            "did you mean `memory`?",
        ),
        // Providers.
        (
            after(V, "base_url = \"ftp://x\""),
            "3:12",
            "must begin with http",
        ),
        (after(V, "key = true"), "3:7", "`providers.v.key` must be"),
        (after(V, "silence = \"soon\""), "3:11", "\"5m\""),
        (after(V, "silence = 0"), "3:11", "seconds"),
        (
            after(V, "base_url = \"https://x/?api_key=1\""),
            "3:12",
            "holds a key",
        ),
        (
            after(V, "base_url = \"http://u:p@x/\""),
            "3:12",
            "credential",
        ),
        (
            after(V, "base_url = \"http://169.254.169.254/\""),
            "3:12",
            "metadata",
        ),
        (
            after(V, "key_place = \"query\""),
            "3:13",
            "\"bearer\", or { header",
        ),
        (
            after(V, "key_place = { header = \"host\" }"),
            "3:24",
            "no header that can hold a key",
        ),
        (
            after(V, "key_place = {}"),
            "3:13",
            "\"bearer\", or { header",
        ),
        (after(V, "models = []"), "3:10", "is empty"),
        (
            after(V, "models = [\"a\", \"b c\"]"),
            "3:16",
            "none of them a space",
        ),
        (
            after(V, "models = [\"a\"]\nmodel = \"b\""),
            "4:9",
            "not among `models`",
        ),
        (
            after(V, "prices = { input = 0, output = 0 }"),
            "3:12",
            "\"*\" = { input = 0",
        ),
        (
            after(V, "prices = { m = { input = 0 } }"),
            "3:12",
            "has no `output`",
        ),
        (
            after(V, "prices = { m = { input = -1, output = 0 } }"),
            "3:26",
            "from 0 to",
        ),
        (
            after(V, "prices = { m = { input = inf, output = 0 } }"),
            "3:26",
            "counted with",
        ),
        (
            after(V, "prices = { m = { in = 1, input = 0, output = 0 } }"),
            "3:18",
            "has no field `in`",
        ),
        // References to something else.
        (
            "[defaults]\npolicy = \"codr\"".into(),
            "2:10",
            "did you mean `coder`?",
        ),
        (
            after(P, "[defaults]\npolicy = \"coder\""),
            "4:10",
            "there is no policy `coder`; there are: p",
        ),
        (
            after(V, "[defaults]\nprovider = \"openai\""),
            "4:12",
            "there is no provider `openai`",
        ),
        ("[assign]\npolicy = \"mock\"".into(), "1:1", "[[assign]]"),
        ("[[assign]]\npolicy = \"mock\"".into(), "1:1", "says nobody"),
        (
            "[[assign]]\nusers = [\"u\"]".into(),
            "1:1",
            "has no `policy`",
        ),
        (
            "[[assign]]\nusers = [\"u\"]\npolicy = \"no\"".into(),
            "3:10",
            "no policy `no`",
        ),
        (
            "[[assign]]\nusers = [\"\"]\npolicy = \"mock\"".into(),
            "2:10",
            "1 to 255",
        ),
    ] {
        let lines = wrong(&text);
        let fits = |line: &String| {
            line.starts_with(&format!("etc/lucid.toml:{place}: ")) && line.contains(says)
        };
        assert!(
            lines.iter().any(fits),
            "{text}\nwanted {place} with {says:?}, was told\n{}",
            lines.join("\n")
        );
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_in_the_order_of_the_file() {
    let lines = wrong(
        "[providers.v]\ncomponent = \"builtin:x\"\nkey = \"a b\"\n[policies.p]\ndigest = 1\n[zzz]\n",
    );
    let places: Vec<&str> = lines
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let expected = ["2:13", "3:7", "4:11", "5:10", "6:2"].map(|at| format!("etc/lucid.toml:{at}:"));
    assert_eq!(places, expected, "{lines:#?}");
}

#[test]
fn a_key_that_was_written_into_the_manifest_is_not_repeated() {
    for (field, key) in [
        ("key", "sk-ant-api03-verysecret"),
        ("key", "AIzaSyVerySecret"),
        ("base_url", "http://user:verysecret@host/?key=verysecret"),
        ("base_url", "http://host/?key=verysecret"),
        ("key_place", "verysecret"),
    ] {
        let lines = wrong(&format!("{V}{field} = \"{key}\"")).join("\n");
        assert!(!lines.to_lowercase().contains("verysecret"), "{lines}");
    }
}

#[test]
fn no_manifest_can_have_the_hosts_own_secrets_sent_to_a_provider() {
    for variable in ["INTERNAL_API_KEY", "SUPABASE_JWT_SECRET", "ENCRYPTION_KEY"] {
        let lines = wrong(&format!("{V}key = \"{variable}\"")).join("\n");
        assert!(lines.contains("this host's own secret"), "{lines}");
    }
    // Nor a name that makes such a variable the default one.
    let lines = wrong("[providers.internal]\ncomponent = \"builtin:openai\"").join("\n");
    assert!(
        lines.starts_with("etc/lucid.toml:1:12: INTERNAL_API_KEY"),
        "{lines}"
    );
}

#[test]
fn what_is_hostile_about_a_file_is_a_sentence() {
    // Deeper than the parser allows, and longer than a name may be.
    let deep = format!(
        "{P}settings = {{ a = {}1{} }}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    assert!(wrong(&deep)[0].contains("not TOML"));
    let long = format!("{} = 1", "k".repeat(100_000));
    assert!(wrong(&long)[0].len() < 2_000);
    let large = format!("{P}settings = {{ a = \"{}\" }}", "x".repeat(70_000));
    assert!(wrong(&large)[0].contains("65536 are allowed"));
    let escape = "\"\\u001b[31m\" = 1";
    assert!(!wrong(escape)[0].contains('\u{1b}'));

    let folder = tempfile::tempdir().unwrap();
    let read = |name: &str| {
        Manifest::read(&folder.path().join(name))
            .unwrap_err()
            .to_string()
    };
    assert!(read("absent.toml").contains("cannot be read"));
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    assert!(read("folder").contains("it is no file"));
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(
        read("pipe").contains("it is no file"),
        "a pipe would be waited for"
    );
    std::fs::write(folder.path().join("large"), vec![b'#'; 2 << 20]).unwrap();
    assert!(read("large").contains("larger than"));
    std::fs::write(folder.path().join("binary"), [0xff, 0xfe]).unwrap();
    assert!(read("binary").contains("UTF-8"));
}

#[test]
fn who_is_named_first_gets_that_policy_and_others_none() {
    let manifest = parse(
        "[[assign]]\nusers = [\"u\"]\npolicy = \"mock\"\n[[assign]]\nusers = [\"w\"]\nprojects = [\"x\"]\npolicy = \"coder\"\n",
    )
    .unwrap();
    assert_eq!(manifest.assigned(&"u".into(), Some("x")), Some("mock"));
    assert_eq!(manifest.assigned(&"v".into(), Some("x")), Some("coder"));
    assert_eq!(manifest.assigned(&"w".into(), None), Some("coder"));
    assert_eq!(manifest.assigned(&"x".into(), Some("u")), None);
}

/// Loads a manifest from a folder with a component in a file.
async fn loaded(text: &str) -> Result<LoadedPlugins, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own.wasm"), builtin::MOCK).unwrap();
    let path = folder.path().join("lucid.toml");
    std::fs::write(&path, text).unwrap();
    let base = format!("{}/", folder.path().display());
    let lines = |problems: ManifestProblems| -> Vec<String> {
        let text = problems.to_string().replace(&base, "");
        text.lines().map(str::to_owned).collect()
    };
    let manifest = Manifest::read(&path).map_err(lines)?;
    Box::pin(load(&manifest, &engine(), &Plugins::default(), None))
        .await
        .map_err(lines)
}

#[tokio::test]
async fn the_example_loads() {
    let loaded = loaded(EXAMPLE).await.unwrap();
    let names: Vec<&str> = loaded
        .policies
        .iter()
        .map(|one| one.plugin.name())
        .collect();
    assert_eq!(names, ["coder", "pair", "rehearsal"]);
    assert_eq!(loaded.policies[0].settings["ask"], false);
    assert_eq!(loaded.policies[2].builtin, Some("mock"));
    assert_eq!(loaded.providers[1].settings, r#"{"stream_usage":true}"#);
}

#[tokio::test]
async fn a_component_of_ones_own_is_loaded_with_its_digest_and_its_settings() {
    let digest = sha256_hex(builtin::MOCK).to_uppercase();
    let text = format!(
        "[policies.mine]\ncomponent = \"own.wasm\"\ndigest = \"sha256:{digest}\"\nsettings = {{ delay_ms = 7 }}"
    );
    let loaded = loaded(&text).await.unwrap();
    assert_eq!(loaded.policies[0].plugin.name(), "mine");
    assert_eq!(loaded.policies[0].settings["delay_ms"], 7);
    assert_eq!(loaded.policies[0].builtin, None);
    assert_eq!(loaded.providers.len(), 3, "of providers it says nothing");
}

#[tokio::test]
async fn an_upload_in_the_place_of_a_built_in_adapter_is_not_built_in() {
    let folder = tempfile::tempdir().unwrap();
    let (file, adapter) = (folder.path().join("own.wasm"), builtin::PROVIDERS[0].1);
    std::fs::write(&file, adapter).unwrap();
    let digest = Digest::of(adapter);
    let text = "[providers.google]\ncomponent = \"builtin:google\"\n";
    let manifest = Manifest::parse(Path::new("lucid.toml"), text).unwrap();
    let mut uploads = UploadOverrides::default();
    let upload = UploadOverride {
        file,
        digest,
        added: false,
        probation: None,
    };
    uploads.set(PluginKind::Llm, "google", Some(upload));
    let (engine, none) = (engine(), Plugins::default());
    for (manifest, builtin) in [(manifest.with(uploads), false), (manifest, true)] {
        let loaded = Box::pin(load(&manifest, &engine, &none, None)).await;
        assert_eq!(loaded.unwrap().providers[0].builtin, builtin);
    }
}

#[tokio::test]
async fn what_cannot_be_loaded_is_said_with_its_place_and_nothing_is_loaded() {
    let zeros = "0".repeat(64);
    let text = format!(
        "[policies.gone]\ncomponent = \"gone.wasm\"\n\
         [policies.manifest]\ncomponent = \"lucid.toml\"\n\
         [policies.other]\ncomponent = \"own.wasm\"\ndigest = \"sha256:{zeros}\"\n\
         [policies.coder]\ncomponent = \"builtin:coder\"\n\
         [policies.coder.settings]\naks = false\nparams = 3\n\
         [providers.mock]\ncomponent = \"own.wasm\"\n\
         [providers.strict]\ncomponent = \"builtin:google\"\nsettings = {{ a = 1 }}\n"
    );
    let lines = loaded(&text).await.err().unwrap();
    for (place, says) in [
        ("2:13", "gone.wasm cannot be read"),
        ("4:13", "is not a WebAssembly component"),
        ("7:10", "another than the manifest means"),
        ("11:1", "`coder` has no field `aks`; did you mean `ask`?"),
        ("12:1", "cannot take `params` as it is"),
        ("14:13", "is not a llm plugin"),
        ("17:14", "has no field `a`; there are none"),
    ] {
        let begin = format!("lucid.toml:{place}: ");
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with(&begin) && line.contains(says)),
            "wanted {begin}{says}, was told\n{}",
            lines.join("\n")
        );
    }
    assert_eq!(lines.len(), 7, "{lines:#?}");
}

fn schema() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap()
}

pub(super) fn as_json(text: &str) -> Value {
    let document = toml::de::DeTable::parse(text).unwrap();
    let mut places = BTreeMap::new();
    let object =
        ManifestReader::new(Path::new("x"), text).object(document.get_ref(), "", &mut places);
    Value::Object(object.unwrap())
}

#[test]
fn the_schema_for_editors_takes_the_example_and_names_the_same_fields() {
    let errors: Vec<String> = schema()
        .iter_errors(&as_json(EXAMPLE))
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert_eq!(errors, Vec::<String>::new());
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for (pointer, fields) in [
        ("/properties", read::ROOT),
        ("/$defs/policy/properties", plugins::PLUGIN),
        ("/$defs/provider/properties", plugins::PROVIDER),
        ("/$defs/tools/properties", plugins::TOOLS),
        ("/$defs/limits/properties", plugins::LIMITS),
        ("/$defs/price/properties", plugins::PRICE),
        ("/$defs/git/properties", plugins::GIT),
        ("/$defs/registry/properties", registries::REGISTRY),
        ("/properties/defaults/properties", read::DEFAULTS),
        ("/properties/assign/items/properties", read::ASSIGN),
        ("/$defs/key_place/anyOf/1/properties", plugins::KEY_PLACE),
    ] {
        let properties = schema.pointer(pointer).and_then(Value::as_object).unwrap();
        let mut named: Vec<&str> = properties.keys().map(String::as_str).collect();
        let mut fields = fields.to_vec();
        named.sort_unstable();
        fields.sort_unstable();
        assert_eq!(named, fields, "{pointer}");
    }
    for wrong in [
        json!({"polices": {}}),
        json!({"policies": {"auto": {"component": "builtin:coder"}}}),
        json!({"policies": {"p": {}}}),
        json!({"providers": {"v": {"component": "x", "key": "sk-abc"}}}),
        json!({"registries": {"x": {"user": "a"}}}),
        json!({"registries": {"x": {"user": "a", "password": "hunter2"}}}),
        json!({"tools": {"a__b": {"component": "x"}}}),
        json!({"tools": {"t": {"component": "x", "key": "K"}}}),
    ] {
        assert!(!self::schema().is_valid(&wrong), "the schema takes {wrong}");
    }
}

#[test]
fn the_schema_for_editors_has_the_readers_ranges_and_the_hosts_defaults() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let at = |pointer: &str| {
        schema
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{pointer}"))
    };
    let fuel = [*plugins::FUEL.start(), *plugins::FUEL.end()].map(|fuel| fuel as f64);
    let silence = [plugins::SILENCE.0, plugins::SILENCE.1];
    for (pointer, [least, most]) in [
        ("/$defs/limits/properties/fuel", fuel),
        ("/$defs/limits/properties/time/anyOf/0", plugins::TIME),
        ("/$defs/tools/properties/time/anyOf/0", plugins::CALL_TIME),
        ("/$defs/mcp/properties/time/anyOf/0", super::mcp::TIME),
        (
            "/$defs/mcp/properties/start_time/anyOf/0",
            super::mcp::START_TIME,
        ),
        ("/$defs/provider/properties/silence/anyOf/0", silence),
        ("/$defs/dollars", [0.0, plugins::DEAREST]),
    ] {
        let bound = |name: &str| at(pointer)[name].as_f64().unwrap();
        assert_eq!(
            [bound("minimum"), bound("maximum")],
            [least, most],
            "{pointer}"
        );
    }
    assert_eq!(at("/$defs/source/maxLength"), read::LONGEST_SOURCE);
    let limits = PluginLimits::default();
    let default = |name: &str| at(&format!("/$defs/limits/properties/{name}/default"));
    let bytes = |name: &str| size(default(name).as_str().unwrap()).unwrap();
    assert_eq!(default("fuel"), limits.fuel);
    assert_eq!(bytes("memory"), limits.memory_bytes as u64);
    assert_eq!(bytes("output"), limits.output_bytes as u64);
    assert_eq!(default("time").as_f64(), Some(limits.wall.as_secs_f64()));
}

/// JSON as inline TOML.
fn as_toml(value: &Value) -> String {
    // JSON leaves one control character unescaped.
    let text = |text: &str| Value::from(text).to_string().replace('\u{7f}', "\\u007f");
    match value {
        Value::String(all) => text(all),
        Value::Object(all) => {
            let all = all.iter();
            let all: Vec<String> = all
                .map(|(name, value)| format!("{} = {}", text(name), as_toml(value)))
                .collect();
            format!("{{ {} }}", all.join(", "))
        }
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(as_toml).collect();
            format!("[{}]", all.join(", "))
        }
        other => other.to_string(),
    }
}

/// A manifest as a document of its own fields.
fn as_document(manifest: &Manifest) -> Value {
    let plugin = |entry: &PluginEntry| {
        let mut all = Map::new();
        let component = match &entry.component.value {
            ComponentSource::Builtin(name) => format!("builtin:{name}"),
            ComponentSource::File(path) => path.strip_prefix("etc").unwrap().display().to_string(),
            ComponentSource::Registry(reference) => reference.to_string(),
        };
        all.insert("component".into(), component.into());
        if let Some(digest) = &entry.digest {
            all.insert("digest".into(), digest.value.with_algorithm().into());
        }
        if entry.settings != PluginSettings::default() {
            all.insert(
                "settings".into(),
                Value::Object(entry.settings.values.clone()),
            );
        }
        let LimitOverrides {
            fuel,
            memory,
            output,
            time,
        } = entry.limits;
        let limits = [
            ("fuel", fuel),
            ("memory", memory.map(|bytes| bytes as u64)),
            ("output", output.map(|bytes| bytes as u64)),
            ("time", time.map(|time| time.as_secs())),
        ];
        let limits: Map<String, Value> = limits
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.into())))
            .collect();
        if !limits.is_empty() {
            all.insert("limits".into(), Value::Object(limits));
        }
        all
    };
    let mut root = Map::new();
    let mut put = |name: &str, all: Map<String, Value>| {
        if !all.is_empty() {
            root.insert(name.into(), Value::Object(all));
        }
    };
    let policies = manifest.policies.iter();
    put(
        "policies",
        policies
            .map(|(name, entry)| (name.clone(), plugin(entry).into()))
            .collect(),
    );
    let provider = |entry: &ProviderEntry| {
        let mut all = plugin(&entry.plugin);
        let price = |prices: &lucid_types::wit::llm::Prices| {
            let dollars = |millionths: u64| millionths / 1_000_000;
            json!({
                "input": dollars(prices.input), "output": dollars(prices.output),
                "cache_read": dollars(prices.cache_read), "cache_write": dollars(prices.cache_write),
            })
        };
        let by_model = entry.prices.by_model.iter();
        let mut prices: Map<String, Value> = by_model
            .map(|(name, one)| (name.clone(), price(one)))
            .collect();
        if let Some(others) = &entry.prices.others {
            prices.insert("*".into(), price(others));
        }
        let place = entry.key_place.as_ref().map(|place| match place {
            KeyInjection::Bearer => json!("bearer"),
            KeyInjection::Header(name) => json!({ "header": name.as_str() }),
        });
        let fields = [
            (
                "base_url",
                entry.base_url.as_ref().map(|url| url.value.as_str().into()),
            ),
            ("key", Some(entry.key.name.as_str().into())),
            ("key_place", place),
            ("models", entry.models.clone().map(Value::from)),
            ("model", entry.model.clone().map(Value::from)),
            ("small_model", entry.small_model.clone().map(Value::from)),
            (
                "prices",
                (!prices.is_empty()).then_some(Value::Object(prices)),
            ),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                all.insert(name.into(), value);
            }
        }
        Value::Object(all)
    };
    let providers = manifest.providers.iter();
    put(
        "providers",
        providers
            .map(|(name, entry)| (name.clone(), provider(entry)))
            .collect(),
    );
    let git = |entry: &GitEntry| {
        let mut all = plugin(&entry.plugin);
        for (name, url) in [("base_url", &entry.base_url), ("web_url", &entry.web_url)] {
            if let Some(url) = url {
                all.insert(name.into(), url.value.as_str().into());
            }
        }
        Value::Object(all)
    };
    let gits = manifest.git.iter();
    put(
        "git",
        gits.map(|(name, entry)| (name.clone(), git(entry)))
            .collect(),
    );
    let registry = |entry: &RegistryEntry| {
        let login = entry.login.as_ref();
        let fields = [
            ("user", login.map(|login| login.user.as_str().into())),
            (
                "password",
                login.map(|login| login.password.name.as_str().into()),
            ),
            ("plain_http", entry.plain_http.map(Value::from)),
        ];
        object(fields.to_vec())
    };
    let registries = manifest.registries.iter();
    put(
        "registries",
        registries
            .map(|(host, entry)| (host.to_string(), registry(entry)))
            .collect(),
    );
    let defaults = [
        ("policy", &manifest.default_policy),
        ("provider", &manifest.default_provider),
    ];
    let defaults = defaults
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value.as_ref()?.value.as_str().into())));
    put("defaults", defaults.collect());
    let assign = |one: &PolicyAssignment| {
        let mut all = Map::new();
        all.insert("policy".into(), one.policy.value.as_str().into());
        for (name, ids) in [("users", &one.users), ("projects", &one.projects)] {
            if !ids.is_empty() {
                all.insert(name.into(), ids.clone().into());
            }
        }
        Value::Object(all)
    };
    if !manifest.assignments.is_empty() {
        root.insert(
            "assign".into(),
            manifest.assignments.iter().map(assign).collect(),
        );
    }
    Value::Object(root)
}

/// An optional field.
fn maybe(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Option<Value>> {
    proptest::option::of(value)
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    let fields = fields.into_iter();
    let there = fields.filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect())
}

fn any_settings() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,8}", inner, 0..4)
                .prop_map(|all| Value::Object(all.into_iter().collect())),
        ]
    });
    proptest::collection::btree_map(".{0,8}", value, 0..4)
        .prop_map(|all| Value::Object(all.into_iter().collect()))
}

fn any_plugin(builtins: &'static [&'static str]) -> impl Strategy<Value = Value> {
    let limits = (
        maybe((1_000_000_u64..=1_000_000_000_000).prop_map(Value::from)),
        maybe((1_u64 << 20..=512 << 20).prop_map(Value::from)),
        maybe((64_u64 << 10..=64 << 20).prop_map(Value::from)),
        (1_u64..=60).prop_map(Value::from),
    );
    let limits = limits.prop_map(|(fuel, memory, output, time)| {
        object(vec![
            ("fuel", fuel),
            ("memory", memory),
            ("output", output),
            ("time", Some(time)),
        ])
    });
    let component = prop_oneof![
        proptest::sample::select(builtins).prop_map(|name| format!("builtin:{name}")),
        "[a-z]{1,8}(/[a-z]{1,8})?\\.wasm",
        "oci://[a-z]{1,9}\\.example(:[1-9][0-9]{0,3})?(/[a-z0-9]{1,5}){1,3}:[0-9a-zA-Z]{1,9}",
    ];
    let digest = "[0-9a-f]{64}".prop_map(|hex| Value::from(format!("sha256:{hex}")));
    let fields = (
        component,
        maybe(digest),
        maybe(any_settings()),
        maybe(limits),
    );
    fields.prop_map(|(component, digest, settings, limits)| {
        object(vec![
            ("component", Some(component.into())),
            ("digest", digest),
            ("settings", settings),
            ("limits", limits),
        ])
    })
}

fn any_provider() -> impl Strategy<Value = Value> {
    let model = "[a-zA-Z0-9äß:/._-]{1,20}";
    let price = proptest::array::uniform4(0_u64..1_000).prop_map(|[input, output, read, write]| {
        json!({"input": input, "output": output, "cache_read": read, "cache_write": write})
    });
    let prices = proptest::collection::btree_map(
        prop_oneof![Just("*".to_owned()), model.prop_map(String::from)],
        price,
        1..3,
    );
    let place = prop_oneof![
        Just(json!("bearer")),
        "x-[a-z]{1,9}".prop_map(|name| json!({ "header": name })),
    ];
    (
        any_plugin(&["anthropic", "google", "openai"]),
        maybe("https?://[a-z]{3,9}\\.example/[a-z]{0,5}".prop_map(Value::from)),
        "X_[A-Z0-9_]{0,20}",
        maybe(place),
        proptest::collection::vec(model, 1..4),
        any::<[bool; 3]>(),
        maybe(prices.prop_map(|all| Value::Object(all.into_iter().collect()))),
    )
        .prop_map(|(plugin, base_url, key, place, models, has, prices)| {
            let of = |has: bool, value: Value| has.then_some(value);
            let more = object(vec![
                ("base_url", base_url),
                ("key", Some(key.into())),
                ("key_place", place),
                ("model", of(has[0], models[0].clone().into())),
                (
                    "small_model",
                    of(has[1], models[models.len() - 1].clone().into()),
                ),
                ("models", of(has[2], models.into())),
                ("prices", prices),
            ]);
            let (Value::Object(mut all), Value::Object(more)) = (plugin, more) else {
                unreachable!("both are objects")
            };
            all.extend(more);
            Value::Object(all)
        })
}

fn any_git() -> impl Strategy<Value = Value> {
    let url = || maybe("https?://[a-z]{3,9}\\.example/[a-z]{0,5}".prop_map(Value::from));
    let fields = (any_plugin(&["github", "gitlab"]), url(), url());
    fields.prop_map(|(mut plugin, base_url, web_url)| {
        for (name, url) in [("base_url", base_url), ("web_url", web_url)] {
            if let Some(url) = url {
                plugin[name] = url;
            }
        }
        plugin
    })
}

/// A manifest as JSON: any fields, with consistent names.
fn any_manifest() -> impl Strategy<Value = Value> {
    let name = "[a-z0-9][a-z0-9_-]{0,12}";
    let not_auto = |name: &String| name != "auto";
    let policies = proptest::collection::btree_map(
        name.prop_filter("a policy's name", not_auto),
        any_plugin(&["coder", "mock"]),
        0..4,
    );
    let providers = proptest::collection::btree_map(name, any_provider(), 0..4);
    let git = proptest::collection::btree_map(name, any_git(), 0..3);
    let login = ("[^\\p{C}:]{1,20}", "[A-Z_][A-Z0-9_]{0,9}")
        .prop_map(|(user, password)| (user, format!("Y{password}")));
    let registry = (
        proptest::option::of(login),
        proptest::option::of(any::<bool>()),
    )
        .prop_map(|(login, plain)| {
            let (user, password) = login.unzip();
            object(vec![
                ("user", user.map(Value::from)),
                ("password", password.map(Value::from)),
                ("plain_http", plain.map(Value::from)),
            ])
        });
    let registries =
        proptest::collection::btree_map("[a-z]{1,9}\\.example(:[1-9][0-9]{0,3})?", registry, 0..3);
    let ids = || proptest::collection::vec("[^\\p{C}]{1,20}", 1..3);
    let assign =
        proptest::collection::vec((any::<prop::sample::Index>(), ids(), ids(), 0..3), 0..3);
    let default = || proptest::option::of(any::<prop::sample::Index>());
    (
        policies,
        providers,
        git,
        registries,
        assign,
        default(),
        default(),
    )
        .prop_map(
            |(policies, providers, git, registries, assign, policy, provider)| {
                let names = |all: &BTreeMap<String, Value>, usual: &[&str]| -> Vec<String> {
                    if all.is_empty() {
                        return usual.iter().map(|name| (*name).to_owned()).collect();
                    }
                    all.keys().cloned().collect()
                };
                let policy_names = names(&policies, &["coder", "mock"]);
                let provider_names = names(&providers, &["anthropic", "google", "openai"]);
                let defaults = object(vec![
                    (
                        "policy",
                        policy.map(|at| at.get(&policy_names).as_str().into()),
                    ),
                    (
                        "provider",
                        provider.map(|at| at.get(&provider_names).as_str().into()),
                    ),
                ]);
                let assign: Vec<Value> = assign
                    .into_iter()
                    .map(|(at, users, projects, which)| {
                        object(vec![
                            ("policy", Some(at.get(&policy_names).as_str().into())),
                            ("users", (which != 1).then(|| users.into())),
                            ("projects", (which != 0).then(|| projects.into())),
                        ])
                    })
                    .collect();
                let there = |value: Value| {
                    let empty = value.as_object().is_some_and(Map::is_empty)
                        || value.as_array().is_some_and(Vec::is_empty);
                    (!empty).then_some(value)
                };
                object(vec![
                    (
                        "policies",
                        there(Value::Object(policies.into_iter().collect())),
                    ),
                    (
                        "providers",
                        there(Value::Object(providers.into_iter().collect())),
                    ),
                    ("git", there(Value::Object(git.into_iter().collect()))),
                    (
                        "registries",
                        there(Value::Object(registries.into_iter().collect())),
                    ),
                    ("defaults", there(defaults)),
                    ("assign", there(assign.into())),
                ])
            },
        )
}

proptest! {
    #[test]
    fn a_manifest_says_what_was_written_and_the_schema_takes_it(document in any_manifest()) {
        let Value::Object(root) = &document else { unreachable!("it is an object") };
        let text: String = root
            .iter()
            .map(|(name, value)| format!("{name} = {}\n", as_toml(value)))
            .collect();
        let manifest = parse(&text);
        prop_assert!(manifest.is_ok(), "{text}\n{}", manifest.unwrap_err());
        prop_assert_eq!(as_document(&manifest.unwrap()), document.clone(), "{}", text);
        let errors: Vec<String> = schema().iter_errors(&document).map(|error| error.to_string()).collect();
        prop_assert!(errors.is_empty(), "{text}\n{errors:?}");
    }

    #[test]
    fn any_text_is_a_manifest_or_gets_places_that_are_in_it(
        text in prop_oneof![
            any::<String>(),
            // Text that resembles one.
            proptest::collection::vec(proptest::sample::select(&[
                "[policies", "[providers", "[git", ".p", "]", "[[assign]]", "[defaults]", "\n", " = ", "\"", "{", "}",
                "component", "settings", "limits", "prices", "key", "model", "builtin:coder", "sha256:", "1e9",
                "-7", "0x", "[", ",", "true", "#", "ä", "\\u0000", "'''", "time", "2020-01-01", "inf", "\r",
            ][..]), 0..40).prop_map(|parts| parts.concat()),
            // A valid one, truncated or with something inserted.
            (0..EXAMPLE.len(), 0..60_usize, ".{0,3}").prop_map(|(at, cut, put)| {
                let (at, end) = (EXAMPLE.floor_char_boundary(at), (at + cut).min(EXAMPLE.len()));
                let end = EXAMPLE.floor_char_boundary(end).max(at);
                format!("{}{put}{}", &EXAMPLE[..at], &EXAMPLE[end..])
            }),
            lucid_mutations::mutated_text([EXAMPLE]),
        ]
    ) {
        if let Err(problems) = parse(&text) {
            let lines: Vec<&str> = text.split('\n').collect();
            for problem in problems.iter() {
                let at = problem.at.unwrap();
                prop_assert!((1..=lines.len()).contains(&at.line), "{problem} of {} lines", lines.len());
                let length = lines[at.line - 1].chars().count();
                prop_assert!((1..=length + 1).contains(&at.column), "{problem}: the line has {length}");
                prop_assert!(!problem.to_string().contains('\n'));
            }
        }
    }
}
