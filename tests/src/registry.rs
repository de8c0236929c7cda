//! An OCI registry on this machine, with artifacts that the test pushes and faults that it wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Response, Uri};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct RegistryRequest {
    /// The path alone.
    pub path: String,
    /// What follows the `?`, or nothing.
    pub query: String,
    /// `Authorization`.
    pub authorization: Option<String>,
}

type Instead = Box<dyn Fn(&RegistryRequest) -> Option<Response<Body>> + Send + Sync>;

#[derive(Default)]
struct Kept {
    /// Manifests by tag and digest, components by digest, with their media types.
    files: HashMap<String, (&'static str, Vec<u8>)>,
    asked: Vec<RegistryRequest>,
    instead: Option<Instead>,
}

/// The running registry. It is gone when this is dropped.
pub struct TestRegistry {
    /// `127.0.0.1:…`
    pub address: String,
    kept: Arc<Mutex<Kept>>,
    serving: JoinHandle<()>,
}

/// The digest of something, as registries write it.
pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// An answer of its own.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

impl TestRegistry {
    /// An empty one.
    pub async fn start() -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let own = kept.clone();
        let serve = move |uri: Uri, headers: HeaderMap| {
            let answer = own.lock().unwrap().answer(&uri, &headers);
            async move { answer }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(serve);
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            address,
            kept,
            serving,
        }
    }

    /// Puts a component there under a tag, in whatever repository, and returns its manifest's digest.
    pub fn push(&self, tag: &str, wasm: &[u8]) -> String {
        self.push_as(tag, wasm, "application/wasm")
    }

    /// The same with a media type of its own.
    pub fn push_as(&self, tag: &str, wasm: &[u8], kind: &'static str) -> String {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.wasm.config.v0+json",
                "digest": digest_of(b"{}"),
                "size": 2,
            },
            "layers": [{"mediaType": kind, "digest": digest_of(wasm), "size": wasm.len()}],
        });
        let digest = self.push_manifest(tag, manifest.to_string().into_bytes());
        self.put(&digest_of(wasm), "application/octet-stream", wasm.to_vec());
        digest
    }

    /// Puts a manifest there, whatever is in it, and returns its digest.
    pub fn push_manifest(&self, tag: &str, manifest: Vec<u8>) -> String {
        let digest = digest_of(&manifest);
        self.put(tag, MANIFEST, manifest.clone());
        self.put(&digest, MANIFEST, manifest);
        digest
    }

    /// Puts something under a digest or a tag.
    pub fn put(&self, name: &str, kind: &'static str, bytes: Vec<u8>) {
        let mut kept = self.kept.lock().unwrap();
        kept.files.insert(name.to_owned(), (kind, bytes));
    }

    /// From here on what this gives is answered, where it gives something.
    pub fn instead(
        &self,
        instead: impl Fn(&RegistryRequest) -> Option<Response<Body>> + Send + Sync + 'static,
    ) {
        self.kept.lock().unwrap().instead = Some(Box::new(instead));
    }

    /// All that was asked since this was asked last.
    pub fn asked(&self) -> Vec<RegistryRequest> {
        std::mem::take(&mut self.kept.lock().unwrap().asked)
    }

    /// Stops it: nobody answers there any more.
    pub async fn stop(mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Kept {
    fn answer(&mut self, uri: &Uri, headers: &HeaderMap) -> Response<Body> {
        let authorization = headers.get("authorization");
        let asked = RegistryRequest {
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            authorization: authorization.map(|value| value.to_str().unwrap().to_owned()),
        };
        self.asked.push(asked.clone());
        let instead = self.instead.as_ref();
        if let Some(response) = instead.and_then(|instead| instead(&asked)) {
            return response;
        }
        let name = asked.path.rsplit('/').next().unwrap_or_default();
        match self.files.get(name) {
            Some((kind, bytes)) => answer(200, &[("content-type", kind)], bytes.clone()),
            None => answer(404, &[], "{}"),
        }
    }
}
