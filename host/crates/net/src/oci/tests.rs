//! Tests against a registry that behaves and one that misbehaves.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use serde_json::json;
use url::Url;

use super::client::{RegistryClient, RegistryLimits};
use super::*;
use lucid_tests::registry::{TestRegistry as Fake, answer, digest_of};
use lucid_types::secret::Secret;

const WASM: &[u8] = b"what the registry has to give";
const LARGEST: u64 = 1_000;

/// A folder for components, and the access to the registries they come from.
struct Fixture {
    folder: tempfile::TempDir,
    components: ComponentStore,
    registries: BTreeMap<RegistryHost, RegistryAccess>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let components = ComponentStore::new(folder.path().join("components"), LARGEST);
        Self {
            folder,
            components,
            registries: BTreeMap::new(),
        }
    }

    /// As another process, or the next start, would see it.
    fn start_again(&mut self) {
        self.components = ComponentStore::new(self.folder.path().join("components"), LARGEST);
    }

    /// Names a registry, as the manifest may.
    fn name(&mut self, address: &str, login: Option<(&str, &str)>) {
        let login = login.map(|(user, password)| (user.to_owned(), Secret::new(password)));
        let access = RegistryAccess {
            login,
            plain_http: None,
        };
        let registry = RegistryHost::parse(address).unwrap();
        self.registries.insert(registry, access);
    }

    async fn bring_all(
        &self,
        reference: &str,
        component: Option<Digest>,
        tags: TagResolution,
    ) -> FetchResults {
        let wanted = ComponentRequest {
            reference: Reference::parse(reference).unwrap(),
            component,
        };
        self.components
            .fetch_all(&[wanted], self.registries.clone(), tags)
            .await
    }

    /// Fetches one component, and returns its bytes and the warnings.
    async fn bring(
        &self,
        reference: &str,
        tags: TagResolution,
    ) -> Result<(Vec<u8>, Vec<String>), String> {
        let brought = self.bring_all(reference, None, tags).await;
        let (_, came) = brought.by_reference.into_iter().next().unwrap();
        let bytes = std::fs::read(came.map_err(|why| why.to_string())?.file).unwrap();
        Ok((bytes, brought.warnings))
    }

    fn kept(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("components"));
        let entries = entries.into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

fn good(bytes: &[u8]) -> Result<(Vec<u8>, Vec<String>), String> {
    Ok((bytes.to_vec(), Vec::new()))
}

#[tokio::test]
async fn a_component_is_fetched_once_and_is_there_when_its_registry_is_gone() {
    let (fake, mut fixture) = (Fake::start().await, Fixture::new());
    let manifest = fake.push("1", WASM);
    let tagged = format!("{}/team/reviewer:1", fake.address);
    let pinned = format!("{}/team/reviewer@{manifest}", fake.address);
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Refresh).await,
        good(WASM)
    );
    let paths: Vec<String> = fake.asked().into_iter().map(|asked| asked.path).collect();
    let blob = format!("/v2/team/reviewer/blobs/{}", digest_of(WASM));
    assert_eq!(paths, ["/v2/team/reviewer/manifests/1", &*blob]);

    // With its digest it is there already: nobody is asked, now or later.
    assert_eq!(
        fixture.bring(&pinned, TagResolution::Refresh).await,
        good(WASM)
    );
    fixture.start_again();
    assert_eq!(
        fixture.bring(&pinned, TagResolution::Refresh).await,
        good(WASM)
    );
    assert!(
        fake.asked().is_empty(),
        "what is pinned and kept was asked for"
    );

    // By its tag it is what it last was, with a warning.
    fake.stop().await;
    let (bytes, warnings) = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap();
    assert_eq!(bytes, WASM);
    let [warning] = &warnings[..] else {
        panic!("one warning, and not {warnings:?}")
    };
    assert!(
        warning.contains(&tagged) && warning.contains("cannot be reached"),
        "{warning}"
    );
    // It is not asked for with every unrelated change, and the warning stays.
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Cached).await,
        Ok((bytes, warnings))
    );
    let other = fixture
        .bring(&tagged.replace(":1", ":2"), TagResolution::Refresh)
        .await;
    assert!(other.unwrap_err().contains("cannot be reached"));
}

#[tokio::test]
async fn a_tag_is_asked_for_anew_when_somebody_says_so_and_not_before() {
    let (fake, fixture) = (Fake::start().await, Fixture::new());
    fake.push("1", WASM);
    let tagged = format!("{}/a:1", fake.address);
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Cached).await,
        good(WASM)
    );
    fake.asked();
    fake.push("1", b"another build");
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Cached).await,
        good(WASM)
    );
    assert!(fake.asked().is_empty(), "the tag was asked for");
    let anew = fixture.bring(&tagged, TagResolution::Refresh).await;
    assert_eq!(anew, good(b"another build"));
    // The previous build is kept: nothing but the manifest is fetched when the tag goes back.
    fake.push("1", WASM);
    fake.asked();
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Refresh).await,
        good(WASM)
    );
    assert_eq!(fake.asked().len(), 1, "a kept component was fetched again");
}

#[tokio::test]
async fn a_tag_whose_component_has_the_digest_that_is_meant_is_not_asked_for() {
    let (fake, fixture) = (Fake::start().await, Fixture::new());
    fake.push("1", WASM);
    let tagged = format!("{}/a:1", fake.address);
    fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap();
    fake.asked();
    fake.push("1", b"another build");
    let meant = Some(Digest::of(WASM));
    let brought = fixture
        .bring_all(&tagged, meant, TagResolution::Refresh)
        .await;
    let (_, came) = brought.by_reference.into_iter().next().unwrap();
    assert_eq!(Some(came.unwrap().digest), meant);
    assert!(fake.asked().is_empty());
    // Giving the next build's digest fetches that build, without resolving tags again.
    let meant = Some(Digest::of(b"another build"));
    let brought = fixture
        .bring_all(&tagged, meant, TagResolution::Cached)
        .await;
    let (_, came) = brought.by_reference.into_iter().next().unwrap();
    assert_eq!(Some(came.unwrap().digest), meant);
}

#[tokio::test]
async fn what_a_registry_gives_and_should_not_is_refused_and_nothing_of_it_is_kept() {
    type Fault = fn(&Fake);
    let not_there = "0".repeat(64);
    let cases: [(&str, Fault, &str); 13] = [
        ("no such tag", |_| {}, "knows no such component"),
        (
            "a manifest that is none",
            |fake| {
                fake.push_manifest("1", b"<html>".to_vec());
            },
            "no manifest of an artifact",
        ),
        (
            "an image of something else",
            |fake| {
                fake.push_as("1", WASM, "application/vnd.oci.image.layer.v1.tar");
            },
            "holds no WebAssembly component",
        ),
        (
            "a component that is said to be too large",
            |fake| {
                fake.push("1", &[0; 1_001]);
            },
            "1000 are allowed",
        ),
        (
            "another component",
            |fake| {
                fake.push("1", WASM);
                fake.put(&digest_of(WASM), "x/y", WASM.to_ascii_uppercase());
            },
            "another component than its manifest says",
        ),
        (
            "half a component",
            |fake| {
                fake.push("1", WASM);
                fake.put(&digest_of(WASM), "x/y", WASM[..10].to_vec());
            },
            "gave 10 of the component's",
        ),
        (
            "a component that never ends",
            |fake| {
                fake.push("1", WASM);
                fake.instead(|asked| {
                    let endless = futures::stream::repeat(Ok::<_, Infallible>(WASM));
                    let endless = || answer(200, &[], Body::from_stream(endless));
                    asked.path.contains("/blobs/").then(endless)
                });
            },
            "a longer component than",
        ),
        (
            "a component that breaks off",
            |fake| {
                fake.push("1", WASM);
                fake.instead(|asked| {
                    let broken = async {
                        // Lets what came before be sent meanwhile.
                        tokio::task::yield_now().await;
                        Err(std::io::Error::other("broken"))
                    };
                    let begun = futures::stream::iter([Ok(&WASM[..5])]);
                    let pieces = begun.chain(futures::stream::once(broken));
                    let pieces = || answer(200, &[], Body::from_stream(pieces));
                    asked.path.contains("/blobs/").then(pieces)
                });
            },
            "broke off",
        ),
        (
            "a manifest that never ends",
            |fake| {
                fake.instead(|_| {
                    let endless = futures::stream::repeat(Ok::<_, Infallible>(&[b' '; 4_096][..]));
                    Some(answer(200, &[], Body::from_stream(endless)))
                });
            },
            "that are read of a manifest",
        ),
        (
            "a manifest that is not what the registry calls it",
            |fake| {
                fake.push("1", WASM);
                fake.instead(|asked| {
                    let digest = digest_of(b"another");
                    let other = || answer(200, &[("docker-content-digest", &digest)], "{}");
                    asked.path.contains("/manifests/").then(other)
                });
            },
            "another manifest than it must be",
        ),
        (
            "no word",
            |fake| {
                fake.instead(|_| {
                    let never = futures::stream::pending::<Result<&[u8], Infallible>>();
                    Some(answer(200, &[], Body::from_stream(never)))
                });
            },
            "took longer than",
        ),
        (
            "trouble",
            |fake| fake.instead(|_| Some(answer(503, &[], "password=hunter2"))),
            "answered HTTP 503: try again later",
        ),
        (
            "no",
            |fake| fake.instead(|_| Some(answer(403, &[], ""))),
            "say `user` and `password` in [registries",
        ),
    ];
    for (what, fault, reason) in cases {
        let (fake, mut fixture) = (Fake::start().await, Fixture::new());
        if what == "no word" {
            fixture.components.limits.answer = Duration::from_millis(200);
        }
        fault(&fake);
        let tagged = format!("{}/a:1", fake.address);
        let said = fixture
            .bring(&tagged, TagResolution::Refresh)
            .await
            .expect_err(what);
        assert!(said.contains(reason), "{what}: {said}");
        assert!(!said.contains("hunter2"), "{what}: {said}");
        assert_eq!(
            fixture.kept(),
            Vec::<PathBuf>::new(),
            "{what} left something"
        );
    }
    // And another manifest under the requested digest.
    let (fake, fixture) = (Fake::start().await, Fixture::new());
    fake.push("1", WASM);
    fake.put(&format!("sha256:{not_there}"), "x/y", b"{}".to_vec());
    let pinned = format!("{}/a@sha256:{not_there}", fake.address);
    let said = fixture
        .bring(&pinned, TagResolution::Refresh)
        .await
        .unwrap_err();
    assert!(said.contains("another manifest than it must be"), "{said}");
}

#[tokio::test]
async fn a_tag_that_came_to_something_broken_is_what_it_was_and_somebody_is_told() {
    let (fake, mut fixture) = (Fake::start().await, Fixture::new());
    fake.push("1", WASM);
    let tagged = format!("{}/a:1", fake.address);
    fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap();
    fake.push_manifest("1", b"{}".to_vec());
    fixture.start_again();
    let (bytes, warnings) = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap();
    assert_eq!(bytes, WASM);
    assert!(
        warnings[0].contains("no manifest of an artifact"),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn user_and_password_go_to_the_registry_and_its_token_server_and_nowhere_else() {
    let (fake, tokens, files) = (
        Fake::start().await,
        Fake::start().await,
        Fake::start().await,
    );
    let mut fixture = Fixture::new();
    fake.push("1", WASM);
    files.put("the-file", "x/y", WASM.to_vec());
    tokens.instead(|asked| {
        assert_eq!(asked.path, "/token");
        Some(answer(200, &[], json!({"token": "t0ken"}).to_string()))
    });
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"the registry\",scope=\"repository:other:push\"",
        tokens.address
    );
    let location = format!("http://{}/the-file", files.address);
    fake.instead(move |asked| {
        if asked.authorization.as_deref() != Some("Bearer t0ken") {
            return Some(answer(401, &[("www-authenticate", &challenge)], ""));
        }
        let sent_on = || answer(307, &[("location", &location)], "");
        asked.path.contains("/blobs/").then(sent_on)
    });
    let tagged = format!("{}/team/a:1", fake.address);
    fixture.name(&fake.address, Some(("me", "hunter2")));

    // Neither URL is one that the manifest names, and both are on this machine.
    let said = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap_err();
    assert!(
        said.contains(&format!("sends on to http://{}", tokens.address)),
        "{said}"
    );
    fixture.name(&tokens.address, None);
    let said = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap_err();
    assert!(
        said.contains(&format!("sends on to http://{}", files.address)),
        "{said}"
    );
    fixture.name(&files.address, None);
    tokens.asked();
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Refresh).await,
        good(WASM)
    );

    let [asked] = &tokens.asked()[..] else {
        panic!("one token")
    };
    // `me:hunter2`, and a scope for reading this repository, whatever the challenge asked for.
    assert_eq!(
        asked.authorization.as_deref(),
        Some("Basic bWU6aHVudGVyMg==")
    );
    assert_eq!(
        asked.query,
        "service=the+registry&scope=repository%3Ateam%2Fa%3Apull"
    );
    let [asked] = &files.asked()[..] else {
        panic!("one file")
    };
    assert_eq!(asked.authorization, None, "a token went along");
    let to_registry = fake.asked();
    let passwords = to_registry
        .iter()
        .filter_map(|asked| asked.authorization.as_ref());
    assert!(
        passwords.clone().count() > 0 && passwords.clone().all(|value| value == "Bearer t0ken")
    );
}

#[tokio::test]
async fn a_registry_that_wants_a_password_itself_gets_it_and_a_wrong_one_is_said() {
    let (fake, mut fixture) = (Fake::start().await, Fixture::new());
    fake.push("1", WASM);
    fake.instead(|asked| {
        let known = asked.authorization.as_deref() == Some("Basic bWU6aHVudGVyMg==");
        let who = || answer(401, &[("www-authenticate", "Basic realm=\"x\"")], "hunter3");
        (!known).then(who)
    });
    let tagged = format!("{}/a:1", fake.address);
    let said = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap_err();
    assert!(said.contains("say `user` and `password`"), "{said}");
    fixture.name(&fake.address, Some(("me", "hunter3")));
    let brought = fixture
        .bring_all(&tagged, None, TagResolution::Refresh)
        .await;
    let why = brought.by_reference.values().next().unwrap();
    let why = why.as_ref().unwrap_err();
    let said = format!("{why} {brought:?} {:?}", fixture.registries);
    assert!(
        said.contains("are not good for it") && !said.contains("hunter"),
        "{said}"
    );
    fixture.name(&fake.address, Some(("me", "hunter2")));
    assert_eq!(
        fixture.bring(&tagged, TagResolution::Refresh).await,
        good(WASM)
    );
}

#[tokio::test]
async fn a_registry_that_sends_on_without_an_end_is_left() {
    let (fake, fixture) = (Fake::start().await, Fixture::new());
    fake.instead(|asked| Some(answer(302, &[("location", &asked.path)], "")));
    let tagged = format!("{}/a:1", fake.address);
    let said = fixture
        .bring(&tagged, TagResolution::Refresh)
        .await
        .unwrap_err();
    assert!(said.contains("without an end"), "{said}");
    assert!(fake.asked().len() < 10);
}

#[test]
fn a_registry_sends_on_to_public_servers_over_https_and_to_named_ones() {
    let named = [
        "registry.example",
        "127.0.0.1:5000",
        "10.0.0.7:9000",
        "minio.internal",
    ];
    let named = named.map(|text| {
        (
            RegistryHost::parse(text).unwrap(),
            RegistryAccess::default(),
        )
    });
    let client = RegistryClient::new(named.into(), RegistryLimits::default()).unwrap();
    let may = |text: &str| client.may_be_sent_to(&Url::parse(text).unwrap());
    for text in [
        "https://registry.example/x",
        "https://cdn.example/x?signed=1",
        "https://203.0.113.7/x",
        "http://127.0.0.1:5000/x",
        "https://10.0.0.7:9000/x",
        "https://minio.internal/x",
    ] {
        assert!(may(text), "{text}");
    }
    for text in [
        "http://registry.example/x",
        "http://cdn.example/x",
        "https://registry.example:8443/x",
        "https://127.0.0.1:5000/x",
        "http://127.0.0.1:6379/x",
        "https://10.0.0.7/x",
        "https://10.0.0.8:9000/x",
        "http://10.0.0.7:9000/x",
        "https://[::1]/x",
        "https://169.254.169.254/latest",
        "https://minio.internal:9001/x",
        "https://user:pass@cdn.example/x",
        "file:///etc/passwd",
        "ftp://cdn.example/x",
    ] {
        assert!(!may(text), "{text}");
    }
}

#[test]
fn only_this_machine_is_asked_over_plain_http_unless_somebody_says_so() {
    let scheme = |text: &str, plain_http| {
        let registry = RegistryHost::parse(text).unwrap();
        let access = RegistryAccess {
            login: None,
            plain_http,
        };
        let client = RegistryClient::new(
            BTreeMap::from([(registry, access)]),
            RegistryLimits::default(),
        );
        let reference = Reference::parse(&format!("{text}/a:1")).unwrap();
        client
            .unwrap()
            .pull(&reference)
            .unwrap()
            .base()
            .scheme()
            .to_owned()
    };
    assert_eq!(scheme("ghcr.io", None), "https");
    assert_eq!(scheme("10.0.0.7:5000", None), "https");
    assert_eq!(scheme("10.0.0.7:5000", Some(true)), "http");
    assert_eq!(scheme("localhost:5000", None), "http");
    assert_eq!(scheme("localhost:5000", Some(false)), "https");
}

#[tokio::test]
async fn what_was_damaged_on_the_disk_is_fetched_again() {
    let (fake, mut fixture) = (Fake::start().await, Fixture::new());
    let manifest = fake.push("1", WASM);
    let pinned = format!("{}/a@{manifest}", fake.address);
    fixture
        .bring(&pinned, TagResolution::Refresh)
        .await
        .unwrap();
    for kind in ["wasm", "json"] {
        let is_kind = |path: &PathBuf| path.extension().is_some_and(|found| found == kind);
        let file = fixture.kept().into_iter().find(is_kind).unwrap();
        std::fs::write(&file, "damaged").unwrap();
        fixture.start_again();
        assert_eq!(
            fixture.bring(&pinned, TagResolution::Cached).await,
            good(WASM),
            "{kind}"
        );
    }
}

#[tokio::test]
async fn what_is_kept_is_bounded_and_what_is_needed_stays() {
    let (fake, mut fixture) = (Fake::start().await, Fixture::new());
    fixture.components.folder.limits.components = 3;
    let first = fake.push("0", b"build 0");
    let pinned = format!("{}/a@{first}", fake.address);
    fixture
        .bring(&pinned, TagResolution::Refresh)
        .await
        .unwrap();
    let wanted = |text: String| ComponentRequest {
        reference: Reference::parse(&text).unwrap(),
        component: None,
    };
    for number in 1..10 {
        let build = format!("build {number}");
        fake.push("1", build.as_bytes());
        let both = [
            wanted(pinned.clone()),
            wanted(format!("{}/a:1", fake.address)),
        ];
        let brought = fixture
            .components
            .fetch_all(&both, BTreeMap::new(), TagResolution::Refresh)
            .await;
        for came in brought.by_reference.into_values() {
            assert!(came.unwrap().file.is_file());
        }
        let wasm = fixture.kept();
        let wasm = wasm
            .iter()
            .filter(|path| path.extension().is_some_and(|kind| kind == "wasm"));
        assert!(wasm.count() <= 3, "too much is kept");
    }
    // Left behind by a crash.
    let draft = fixture.folder.path().join("components/.draft-old");
    std::fs::write(&draft, "x").unwrap();
    let file = std::fs::File::options().write(true).open(&draft).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    fixture
        .bring(&pinned, TagResolution::Refresh)
        .await
        .unwrap();
    assert!(!draft.exists(), "an abandoned draft lies there for ever");
}
