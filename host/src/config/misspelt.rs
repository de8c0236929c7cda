//! Detects misspelt settings, which would otherwise be silently ignored.
//!
//! A machine's environment is full of other programs' variables, and none of them may be reported
//! here. So a name counts only if it is one slip away from a setting: a letter or two, another
//! case, a missing word, a superfluous unit, or this program's name as a prefix.

use super::known::SETTINGS;

/// Suffixes that may be added to a setting's name, or left out of it.
const UNITS: [&str; 9] = [
    "SECONDS", "SECS", "SEC", "MS", "MINUTES", "BYTES", "MB", "GB", "S",
];

/// First words that other programs' settings share: for these, only wrong letters count.
const SHARED: [&str; 9] = [
    "ANTHROPIC",
    "DOCKER",
    "GIT",
    "GOOGLE",
    "HOST",
    "LOG",
    "OPENAI",
    "PORT",
    "SUPABASE",
];

/// The setting that was probably meant by an unknown name.
pub(super) fn suggestion(name: &str) -> Option<&'static str> {
    if name.len() > 64 || SETTINGS.contains(&name) {
        return None;
    }
    // No other program's variables have this program's name.
    if let Some(bare) = name.strip_prefix("LUCID_") {
        let known = SETTINGS.iter().copied().find(|known| *known == bare);
        return known
            .or_else(|| by_edit_distance(name))
            .or_else(|| by_edit_distance(bare));
    }
    let upper = name.to_ascii_uppercase().replace('-', "_");
    if upper != name {
        // `host` and `port` are used by other programs as well.
        return SETTINGS
            .iter()
            .copied()
            .find(|known| *known == upper && known.contains('_'));
    }
    by_edit_distance(name).or_else(|| by_words_in_common(name))
}

/// One wrong letter in six. The first letter is hardly ever wrong, and another one makes another
/// program's name, as in `VLLM_API_KEY`.
fn by_edit_distance(name: &str) -> Option<&'static str> {
    let first = name.bytes().next()?;
    SETTINGS
        .iter()
        .copied()
        .filter(|known| known.len() >= 8 && known.bytes().next() == Some(first))
        .map(|known| (strsim::osa_distance(name, known), known))
        .filter(|(distance, known)| *distance <= known.len() / 6)
        // A plural is more often another setting's name than a slip.
        .min_by_key(|(distance, known)| (*distance, known.len()))
        .map(|(_, known)| known)
}

/// A setting without one of its words, or with an appended unit.
fn by_words_in_common(name: &str) -> Option<&'static str> {
    let words: Vec<&str> = name.split('_').collect();
    let first = words.first()?;
    let candidates = SETTINGS.iter().copied().filter(|known| {
        let of: Vec<&str> = known.split('_').collect();
        let unit = words
            .split_last()
            .is_some_and(|(last, rest)| UNITS.contains(last) && rest == of);
        let few = of.first() == Some(first)
            && words.len() >= 2
            && words.len() + 1 == of.len()
            && is_within(&words, &of)
            && (!SHARED.contains(first) || known.ends_with("_API_KEY"));
        unit || few
    });
    let all: Vec<&str> = candidates.collect();
    // If it could be any of several, none was probably meant.
    match all.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

/// Whether these words occur in others, in order.
fn is_within(words: &[&str], of: &[&str]) -> bool {
    let mut rest = of.iter();
    words.iter().all(|word| rest.any(|other| other == word))
}

/// The warning about a name.
pub(super) fn warning(name: &str, meant: &str) -> String {
    format!("{name} is no setting of this server and does nothing: {meant} was probably meant.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_in_a_settings_name_is_told_with_the_name_that_was_meant() {
        for (name, expected) in [
            ("MAX_SESIONS_PER_USER", "MAX_SESSIONS_PER_USER"),
            ("MAX_SESSION_PER_USER", "MAX_SESSIONS_PER_USER"),
            ("MAX_ITERATION", "MAX_ITERATIONS"),
            ("MAX_ITERATOINS", "MAX_ITERATIONS"),
            ("max_sessions_per_user", "MAX_SESSIONS_PER_USER"),
            ("SANDBOX_BACKND", "SANDBOX_BACKEND"),
            ("SANDBOX_MEM_LIMIT", "SANDBOX_MEMORY_LIMIT"),
            ("SANDBOX_MEMORY", "SANDBOX_MEMORY_LIMIT"),
            ("SESSION_GRACE", "SESSION_GRACE_SECONDS"),
            ("CONVERSATION_TIMEOUT_SECONDS", "CONVERSATION_TIMEOUT"),
            ("MOCK_STEP_DELAY", "MOCK_STEP_DELAY_SECONDS"),
            ("DEFAULT_POLCY", "DEFAULT_POLICY"),
            ("LLM_BASEURL", "LLM_BASE_URL"),
            ("LLM_KEY", "LLM_API_KEY"),
            ("OPENAI_KEY", "OPENAI_API_KEY"),
            ("OPENAI_APIKEY", "OPENAI_API_KEY"),
            ("ANTROPIC_API_KEY", "ANTHROPIC_API_KEY"),
            ("SUPABASE_JWT_SECRETS", "SUPABASE_JWT_SECRET"),
            ("ENCRIPTION_KEY", "ENCRYPTION_KEY"),
            ("LOG_FROMAT", "LOG_FORMAT"),
            ("LUCID_MANIFST", "LUCID_MANIFEST"),
            ("GIT_PUSH_BRANCH", "GIT_PUSH_BRANCHES"),
            ("LUCID_PORT", "PORT"),
            ("LUCID_MAX_SESSIONS_PER_USER", "MAX_SESSIONS_PER_USER"),
            ("LUCID_MAX_SESIONS_PER_USER", "MAX_SESSIONS_PER_USER"),
        ] {
            assert_eq!(suggestion(name), Some(expected), "{name}");
        }
    }

    #[test]
    fn other_programs_variables_are_passed_over() {
        for name in [
            "PATH",
            "HOME",
            "HOSTNAME",
            "HOSTTYPE",
            "LUCID_TOKEN",
            "LUCID_URL",
            "LUCID_WASM_STD",
            "host",
            "port",
            "PORTS",
            "LANG",
            "LOGNAME",
            "LOG_LEVEL",
            "LOG_FILE",
            "LOG_DIR",
            "SHELL",
            "USER",
            "PWD",
            "TMPDIR",
            "EDITOR",
            "DOCKER_CONFIG",
            "DOCKER_CONTEXT",
            "DOCKER_BUILDKIT",
            "DOCKER_TLS_VERIFY",
            "DOCKER_CERT_PATH",
            "DOCKER_API_VERSION",
            "GIT_DIR",
            "GIT_AUTHOR_NAME",
            "GIT_AUTHOR_EMAIL",
            "GIT_SSH",
            "GIT_SSH_COMMAND",
            "GIT_EDITOR",
            "GIT_PAGER",
            "GIT_ASKPASS",
            "GIT_TERMINAL_PROMPT",
            "GIT_BRANCH",
            "GIT_COMMIT",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "GOOGLE_CLOUD_PROJECT",
            "GOOGLE_CLIENT_ID",
            "GOOGLE_CLIENT_SECRET",
            "OPENAI_ORG_ID",
            "OPENAI_ORGANIZATION",
            "OPENAI_API_BASE",
            "OPENAI_API_TYPE",
            "OPENAI_API_VERSION",
            "OPENAI_PROJECT_ID",
            "OPENROUTER_API_KEY",
            "AZURE_OPENAI_API_KEY",
            "AZURE_OPENAI_ENDPOINT",
            "ANTHROPIC_AUTH_TOKEN",
            "ANTHROPIC_VERSION",
            "ANTHROPIC_SMALL_FAST_MODEL",
            "VLLM_API_KEY",
            "XAI_API_KEY",
            "GROQ_API_KEY",
            "GEMINI_API_KEY",
            "MISTRAL_API_KEY",
            "LITELLM_API_KEY",
            "LLAMA_API_KEY",
            "SUPABASE_ACCESS_TOKEN",
            "SUPABASE_DB_PASSWORD",
            "SUPABASE_PROJECT_ID",
            "SUPABASE_AUTH_SITE_URL",
            "NEXT_PUBLIC_SUPABASE_URL",
            "DATABASE_URL",
            "SESSION_MANAGER",
            "SESSION_SECRET",
            "WORKSPACE",
            "WORKSPACE_ID",
            "WORKSPACE_PATH",
            "HOST_UID",
            "HTTP_PROXY",
            "http_proxy",
            "NO_PROXY",
            "RUST_LOG",
            "RUST_BACKTRACE",
            "RUSTUP_HOME",
            "CARGO_HOME",
            "CARGO_MANIFEST_DIR",
            "LUCID_TOKEN",
            "LUCID_WASM_STD",
            "LUCID_DOCKER",
            "LUCID_RELOAD",
            "LUCID_LITELLM",
            "LUCID_LANGUAGES",
            "MAX_CONNECTIONS",
            "MAX_RETRIES",
            "DEFAULT_REGION",
            "DEFAULT_LOCALE",
            "DEFAULT_USER",
            "ALLOWED_HOSTS",
            "CORS_ALLOWED_ORIGINS",
            "MAIL_HOST",
            "DB_PORT",
            "REDIS_HOST",
            "KUBERNETES_SERVICE_HOST",
            "KUBERNETES_SERVICE_PORT",
            "INTERNAL_HOST",
            "ENCRYPTION_ALGORITHM",
            "SANDBOX",
            "PYTHONPATH",
            "JAVA_HOME",
            "_",
            "",
        ] {
            assert_eq!(suggestion(name), None, "{name}");
        }
        for name in SETTINGS {
            assert_eq!(suggestion(name), None, "{name}");
        }
    }
}
