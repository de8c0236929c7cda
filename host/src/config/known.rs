//! The recognised environment variables.
//!
//! # Invariants
//!
//! - Every setting is in the list. Any other variable of the environment is ignored, and may hold
//!   anything.

/// All settings.
pub const SETTINGS: &[&str] = &[
    "PORT",
    "HOST",
    "SUPABASE_URL",
    "SUPABASE_ANON_KEY",
    "SUPABASE_SERVICE_KEY",
    "SUPABASE_SERVICE_ROLE_KEY",
    "SUPABASE_JWT_SECRET",
    "SUPABASE_JWKS_URL",
    "JWT_AUDIENCE",
    "JWT_ISSUER",
    "ENCRYPTION_KEY",
    "INTERNAL_API_KEY",
    "ALLOWED_ORIGINS",
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_MODEL",
    "GOOGLE_API_KEY",
    "GOOGLE_BASE_URL",
    "GOOGLE_MODEL",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_MODEL",
    "LLM_API_KEY",
    "LLM_BASE_URL",
    "LLM_MODEL",
    "LLM_MODELS",
    "MODEL_OUTAGE_PATIENCE",
    "DEFAULT_MODEL_PROVIDER",
    "DEFAULT_PROVIDER",
    "DEFAULT_POLICY",
    "MAX_ITERATIONS",
    "SESSION_TOKEN_LIMIT",
    "SESSION_COST_LIMIT",
    "CONVERSATION_TIMEOUT",
    "SESSION_GRACE_SECONDS",
    "WORKSPACE_RETENTION",
    "METRICS_LISTEN",
    "DRAIN_TIME",
    "SHUTDOWN_TIMEOUT",
    "MAX_SESSIONS_PER_USER",
    "USER_LOG_RATE",
    "USER_LOG_LIMIT",
    "SANDBOX_BACKEND",
    "SANDBOX_NETWORK",
    "SANDBOX_PRIVATE_HOSTS",
    "SANDBOX_DIRECT",
    "SANDBOX_MEMORY_LIMIT",
    "SANDBOX_DISK_LIMIT",
    "SANDBOX_FILE_LIMIT",
    "DISK_RESERVE",
    "SANDBOX_ALLOW_LOCAL",
    "SANDBOX_IMAGE",
    "SANDBOX_CPU_LIMIT",
    "SANDBOX_UIDS",
    "SANDBOX_CONTAINER_PREFIX",
    "SANDBOX_POOL_SIZE",
    "DOCKER_HOST",
    "DOCKER_NETWORK",
    "HOST_WORKSPACE_PATH",
    "WORKSPACE_MOUNT_PATH",
    "WORKSPACE_BASE_PATH",
    "ALLOW_PRIVATE_REPOSITORIES",
    "GIT_CLONE_DEPTH",
    "GIT_SIZE_LIMIT",
    "GIT_TIMEOUT",
    "GIT_ALLOW_OWNER",
    "GIT_PUSH_BRANCHES",
    "MOCK_STEP_DELAY_SECONDS",
    "LOG_FORMAT",
    "PLUGIN_LOG_LEVEL",
    "LUCID_MANIFEST",
];

/// Whether a name is a setting.
pub(super) fn known(name: &str) -> bool {
    SETTINGS.contains(&name)
}

/// The host's own secrets, which no manifest can have sent anywhere.
const HOST_SECRETS: &[&str] = &[
    "SUPABASE_JWT_SECRET",
    "SUPABASE_ANON_KEY",
    "SUPABASE_SERVICE_KEY",
    "SUPABASE_SERVICE_ROLE_KEY",
    "ENCRYPTION_KEY",
    "INTERNAL_API_KEY",
];

/// Whether a variable holds one of the host's own secrets.
pub(crate) fn is_host_secret(name: &str) -> bool {
    HOST_SECRETS.contains(&name)
}

/// Whether a text can be the name of a variable that holds a key. A key given in place of its
/// variable's name is not: keys contain lower-case letters or hyphens.
pub(crate) fn is_variable(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_uppercase() || byte == b'_';
    let first = name.bytes().next();
    first.is_some_and(plain)
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| plain(byte) || byte.is_ascii_digit())
}
