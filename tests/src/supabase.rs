//! Supabase as the host sees it: a PostgreSQL of its own with the migrations run, a PostgREST over it,
//! and before both the gateway that asks for an API key.
//!
//! What always holds: all of it is in a folder of its own, on loopback or a Unix socket, not as root,
//! and gone with the value. PostgreSQL is the machine's (Debian's package), PostgREST comes from npm at
//! the version and with the digest of `tests/postgrest/package-lock.json`. Supabase's own side (the
//! schema `auth`, the roles, what it grants on new tables) is made here.

mod gateway;
mod postgres;
mod rest;

use serde_json::{Value, json};

pub use self::gateway::GatewayRequest;
use self::gateway::SupabaseGateway;
use self::postgres::Postgres;
use self::rest::PostgRest;
use crate::host::{HostBuilder, HttpAnswer};
use crate::token::claims_token;

/// Far enough in the future for every test.
const NEVER: u64 = 4_102_444_800;

/// What the frontend knows.
pub fn anon_key() -> String {
    claims_token(json!({"role": "anon", "iss": "supabase", "exp": NEVER}))
}

/// What only servers know.
pub fn service_key() -> String {
    claims_token(json!({"role": "service_role", "iss": "supabase", "exp": NEVER}))
}

/// A running Supabase.
pub struct TestSupabase {
    // Dropped in this order.
    gateway: SupabaseGateway,
    rest: Option<PostgRest>,
    postgres: Postgres,
    client: reqwest::Client,
}

impl TestSupabase {
    /// Starts all of it, with the migrations run. None, said aloud, where this machine lacks a part;
    /// with `CI=true` that fails the test.
    pub async fn start() -> Option<Self> {
        Self::over(|| Postgres::start(true)).await
    }

    /// The same over a project that somebody else made: this SQL was run there, and no migration.
    pub async fn start_with(project: &str) -> Option<Self> {
        let with_project = || {
            let postgres = Postgres::start(false);
            postgres.sql(project);
            postgres
        };
        Self::over(with_project).await
    }

    async fn over(postgres: impl FnOnce() -> Postgres) -> Option<Self> {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let found = postgres::find().and_then(|_| rest::find());
        if let Err(missing) = found {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "the tests of Supabase cannot run: {missing}"
            );
            eprintln!("the tests of Supabase are SKIPPED: {missing}");
            return None;
        }
        let postgres = postgres();
        let mut supabase = Self {
            gateway: SupabaseGateway::start().await,
            rest: None,
            postgres,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        };
        supabase.start_rest().await;
        Some(supabase)
    }

    /// `SUPABASE_URL`.
    pub fn url(&self) -> String {
        self.gateway.url()
    }

    /// The settings of a host that has this Supabase, without the service key.
    pub fn host(&self) -> HostBuilder {
        crate::Host::with_defaults()
            .set("SUPABASE_URL", self.url())
            .set("SUPABASE_ANON_KEY", anon_key())
    }

    /// The same with the service key and the key for servers.
    pub fn host_with_service(&self, internal_key: &str) -> HostBuilder {
        self.host()
            .set("SUPABASE_SERVICE_KEY", service_key())
            .set("INTERNAL_API_KEY", internal_key)
    }

    /// A new user signs up, and gets an id.
    pub fn sign_up(&self, name: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        // As the role that does it at Supabase, which has no rights on the tables of `public`.
        self.sql(&format!(
            "SET ROLE supabase_auth_admin;
             INSERT INTO auth.users (id, email, raw_user_meta_data)
             VALUES ('{id}', '{name}@example.org', '{{\"name\": \"{name}\"}}')"
        ));
        id
    }

    /// Runs SQL as the administrator, and gives what it printed: rows as lines, columns with `|`
    /// between them.
    pub fn sql(&self, sql: &str) -> String {
        self.postgres.sql(sql)
    }

    /// Runs all migrations once more.
    pub fn migrate(&self) {
        self.postgres.migrate();
    }

    /// PostgreSQL's version, such as `15.13`.
    pub fn version(&self) -> String {
        self.sql("SHOW server_version")
    }

    /// PostgREST goes away. The gateway answers for it, as Supabase's does.
    pub fn stop_rest(&mut self) {
        self.gateway.points_to(None);
        self.rest = None;
    }

    /// PostgREST comes back.
    pub async fn start_rest(&mut self) {
        let rest = PostgRest::start(&self.postgres).await;
        self.gateway.points_to(Some(rest.port()));
        self.rest = Some(rest);
    }

    /// PostgreSQL goes away at once, as in a crash.
    pub fn stop_postgres(&mut self) {
        self.postgres.crash();
    }

    /// PostgreSQL comes back over the same data.
    pub fn start_postgres(&mut self) {
        self.postgres.run();
    }

    /// The answers to the next writes are lost on their way back: they are carried out, and whoever
    /// sent them does not hear of it.
    pub fn lose_answers(&self, writes: usize) {
        self.gateway.lose_answers(writes);
    }

    /// What came through the gateway so far.
    pub fn passed(&self) -> Vec<GatewayRequest> {
        self.gateway.passed()
    }

    /// A request as a frontend sends it: with the anon key, and a token where there is one.
    pub async fn ask(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> HttpAnswer {
        let key = anon_key();
        self.ask_with(&key, token.unwrap_or(&key), method, path, body)
            .await
    }

    /// A request as a server sends it, with the service key.
    pub async fn ask_as_service(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> HttpAnswer {
        let key = service_key();
        self.ask_with(&key, &key, method, path, body).await
    }

    async fn ask_with(
        &self,
        key: &str,
        bearer: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> HttpAnswer {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self
            .client
            .request(method, format!("{}/rest/v1/{path}", self.url()))
            .header("apikey", key)
            .bearer_auth(bearer)
            .header("prefer", "return=representation");
        if let Some(body) = body {
            request = request.json(body);
        }
        HttpAnswer::read(request.send().await.unwrap()).await
    }
}
