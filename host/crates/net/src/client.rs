//! The HTTP client that everything outgoing uses. `clippy.toml` refuses another way of creating one.
//!
//! # Invariants
//! - No client follows a redirect: it would take keys along to wherever it leads. A caller that follows one checks
//!   each target itself.
//! - No client repeats a request that a server may have processed. Callers decide what may be sent twice.
//! - A name is connected to at an address that the [`AddressPolicy`] allows, at the very one that was checked. A proxy
//!   resolves names itself and applies its own checks; a client for private addresses only therefore uses none.
//! - A connection attempt has a timeout.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Client;
use url::Url;

use super::resolver::{AddressPolicy, PolicyResolver};
use super::tls::prepare_tls;
use lucid_types::sanitize::sanitize;

/// How the host presents itself, unless a request says otherwise.
const USER_AGENT: &str = concat!("lucid/", env!("CARGO_PKG_VERSION"));

/// The environment variables that name proxies.
const PROXIES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// What differs between clients.
#[derive(Debug, Clone)]
pub struct ClientSpec {
    addresses: AddressPolicy,
    connect_timeout: Duration,
    read_timeout: Option<Duration>,
    timeout: Option<Duration>,
    proxy: bool,
    keep_alive: bool,
    repeat_refused: bool,
}

impl ClientSpec {
    /// A client for these addresses. `connect_timeout` covers name resolution, the connection and TLS.
    #[must_use]
    pub fn new(addresses: AddressPolicy, connect_timeout: Duration) -> Self {
        Self {
            addresses,
            connect_timeout,
            read_timeout: None,
            timeout: None,
            proxy: true,
            keep_alive: true,
            repeat_refused: false,
        }
    }

    /// Sets the timeout between two pieces of a response.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = Some(timeout);
        self
    }

    /// Sets the timeout of a whole request, from the connection to the last byte of the response.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ignores the proxies that the environment names.
    #[must_use]
    pub fn without_proxy(mut self) -> Self {
        self.proxy = false;
        self
    }

    /// Makes a new connection for each request.
    #[must_use]
    pub fn without_keep_alive(mut self) -> Self {
        self.keep_alive = false;
        self
    }

    /// Repeats a request that an HTTP/2 server refused before it processed any of it, as a server does that is
    /// about to close a connection.
    #[must_use]
    pub fn repeat_refused(mut self) -> Self {
        self.repeat_refused = true;
        self
    }

    /// Creates the client.
    ///
    /// # Errors
    /// If the system's TLS roots or the environment's proxies cannot be read.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where clients are created"
    )]
    pub fn build(self) -> Result<Client, reqwest::Error> {
        prepare_tls();
        let mut client = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect_timeout);
        if !self.repeat_refused {
            client = client.retry(reqwest::retry::never());
        }
        if let Some(timeout) = self.read_timeout {
            client = client.read_timeout(timeout);
        }
        if let Some(timeout) = self.timeout {
            client = client.timeout(timeout);
        }
        if !self.keep_alive {
            client = client.pool_max_idle_per_host(0);
        }
        let mut addresses = self.addresses;
        if self.proxy && addresses != AddressPolicy::PrivateOnly {
            // They are the operator's, and often in the operator's own network.
            addresses.allow_private(proxy_hosts());
        } else {
            client = client.no_proxy();
        }
        client.dns_resolver(PolicyResolver(addresses)).build()
    }
}

/// The hosts of the proxies that the environment names, in lower case.
fn proxy_hosts() -> BTreeSet<String> {
    let proxies = PROXIES.iter().filter_map(|name| {
        let value = std::env::var(name).ok()?;
        let url = Url::parse(&value).or_else(|_| Url::parse(&format!("http://{value}")));
        url.ok()?.host_str().map(str::to_ascii_lowercase)
    });
    proxies.collect()
}

/// Messages of the client's own layers. They do not help to find what went wrong.
const LAYERS: [&str; 5] = [
    "error sending request",
    "client error (",
    "tcp connect error",
    "dns error",
    "error trying to connect",
];

/// The client's error message, with its causes and without the URL.
pub fn error_message(cause: reqwest::Error) -> String {
    let cause = cause.without_url();
    error_chain(&cause)
}

fn error_chain(cause: &dyn std::error::Error) -> String {
    let mut all = vec![cause.to_string()];
    let mut next = cause.source();
    while let Some(deeper) = next {
        all.push(deeper.to_string());
        next = deeper.source();
    }
    let is_layer = |said: &str| LAYERS.iter().any(|layer| said.starts_with(layer));
    let telling = all.iter().filter(|said| !is_layer(said));
    let mut text = String::new();
    for said in telling {
        if text.is_empty() {
            text.clone_from(said);
        } else if !text.contains(said.as_str()) {
            text.push_str(": ");
            text.push_str(said);
        }
    }
    if text.is_empty() {
        text.clone_from(&all[0]);
    }
    // rustls' word for anything that is not TLS.
    if text.contains("InvalidContentType") {
        text = "it answers without TLS, so its address may have to begin with http://".to_owned();
    }
    sanitize(&text, 500)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::response::Redirect;
    use axum::routing::get;

    use super::*;
    use crate::resolver::was_refused;

    /// Starts a server on this machine, and returns its port.
    async fn server() -> u16 {
        let agent = async |headers: HeaderMap| headers["user-agent"].to_str().unwrap().to_owned();
        let routes = Router::new()
            .route("/agent", get(agent))
            .route("/elsewhere", get(async || Redirect::temporary("/agent")))
            .route("/never", get(std::future::pending::<()>));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        port
    }

    fn specs(addresses: &AddressPolicy) -> [ClientSpec; 4] {
        let spec = ClientSpec::new(addresses.clone(), Duration::from_secs(10)).without_proxy();
        [
            spec.clone(),
            spec.clone().without_keep_alive(),
            spec.clone().timeout(Duration::from_millis(200)),
            spec.read_timeout(Duration::from_millis(200)),
        ]
    }

    #[tokio::test]
    async fn every_client_says_who_it_is_and_follows_no_redirect() {
        let port = server().await;
        for spec in specs(&AddressPolicy::PublicAndPrivate) {
            let client = spec.build().unwrap();
            let get = async |path: &str| {
                let url = format!("http://localhost:{port}{path}");
                client.get(url).send().await.unwrap()
            };
            assert_eq!(get("/agent").await.text().await.unwrap(), USER_AGENT);
            assert_eq!(get("/elsewhere").await.status(), 307);
        }
    }

    #[tokio::test]
    async fn every_client_asks_the_addresses_of_its_policy_only() {
        let url = format!("http://localhost:{}/agent", server().await);
        let private_hosts = |host: &str| AddressPolicy::Public {
            private_hosts: BTreeSet::from([host.to_owned()]),
        };
        for (addresses, allowed) in [
            (AddressPolicy::public_only(), false),
            (private_hosts("elsewhere"), false),
            (private_hosts("localhost"), true),
            (AddressPolicy::PublicAndPrivate, true),
            (AddressPolicy::PrivateOnly, true),
        ] {
            for spec in specs(&addresses) {
                let sent = spec.build().unwrap().get(&url).send().await;
                match sent {
                    Ok(answer) => assert!(allowed && answer.status() == 200, "{addresses:?}"),
                    Err(error) => assert!(!allowed && was_refused(&error), "{error:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_given_up() {
        let url = format!("http://localhost:{}/never", server().await);
        for spec in &specs(&AddressPolicy::PrivateOnly)[2..] {
            let sent = spec.clone().build().unwrap().get(&url).send().await;
            assert!(sent.unwrap_err().is_timeout(), "{spec:?}");
        }
    }
}
