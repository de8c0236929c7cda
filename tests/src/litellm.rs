//! litellm's proxy: somebody else's implementation of the providers' APIs, with a scripted model
//! behind it.
//!
//! What always holds: it is installed from PyPI, in the versions of `tests/litellm.txt`, into a
//! virtual environment of the tests' own, once; it listens on loopback, and is killed at the end.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::model::Model;
use crate::python::environment;

const VERSIONS: &str = include_str!("../litellm.txt");
/// Leaves out the tests that need it, where PyPI cannot be reached.
const CHOICE: &str = "LUCID_LITELLM";
/// A proxy loads for some ten seconds on an idle machine; this one may not be idle.
const STARTS: Duration = Duration::from_secs(240);
/// A free port may be taken by somebody else before the proxy has it.
const TRIES: usize = 3;

/// A running proxy.
pub struct LiteLlm {
    child: Child,
    folder: TempDir,
    port: u16,
}

impl LiteLlm {
    /// Starts one that asks these models under these names. None, said aloud, where the person who
    /// runs the tests does not want it.
    pub async fn start(key: &str, models: &[(&str, &Model)]) -> Option<Self> {
        if std::env::var(CHOICE).is_ok_and(|choice| choice == "skip") {
            eprintln!("{CHOICE}=skip: the adapters are NOT tried against litellm");
            return None;
        }
        let environment =
            tokio::task::spawn_blocking(|| environment("lucid-tests-litellm", VERSIONS, CHOICE))
                .await
                .unwrap();
        for left in (0..TRIES).rev() {
            let mut proxy = Self::launch(&environment, key, models);
            if proxy.comes_up().await {
                return Some(proxy);
            }
            let log = proxy.log();
            assert!(left > 0, "litellm did not come up; it printed:\n{log}");
        }
        None
    }

    /// Where it listens, such as `http://127.0.0.1:4000`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn launch(environment: &Path, key: &str, models: &[(&str, &Model)]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("lucid-litellm-")
            .tempdir()
            .unwrap();
        // YAML holds JSON.
        let list: Vec<_> = models
            .iter()
            .map(|(name, model)| {
                // This provider is asked by chat completions, whatever the route.
                json!({"model_name": name, "litellm_params": {
                    "model": "hosted_vllm/scripted", "api_base": model.url, "api_key": "sk-upstream",
                }})
            })
            .collect();
        let config = json!({
            "model_list": list,
            "litellm_settings": {"drop_params": true, "telemetry": false, "num_retries": 0},
            "general_settings": {"master_key": key},
        });
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config.to_string()).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .unwrap()
            .port();
        let log = File::create(folder.path().join("log")).unwrap();
        let child = Command::new(environment.join("bin/python"))
            .args(["-m", "litellm.proxy.proxy_cli", "--host", "127.0.0.1"])
            .args(["--port", &port.to_string(), "--config"])
            .arg(&file)
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", folder.path())
            .env("NO_PROXY", "*")
            .env("PYTHONUNBUFFERED", "1")
            // It would fetch its list of models and prices otherwise.
            .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child,
            folder,
            port,
        }
    }

    async fn comes_up(&mut self) -> bool {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let asked = format!("{}/health/liveliness", self.url());
        let began = Instant::now();
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while began.elapsed() < STARTS {
            ticks.tick().await;
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let answer = client.get(&asked).timeout(STARTS).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return true;
            }
        }
        false
    }
}

impl Drop for LiteLlm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- what litellm printed ---\n{}--- end ---", self.log());
        }
    }
}
