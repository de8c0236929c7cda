//! The names under which a model sees a server's tools.
//!
//! # Invariants
//!
//! - A name consists of letters, digits, `-` and `_` and fits beside its server's.
//! - It depends on the tool's own name and on nothing else, so it is the same each time the server
//!   is asked.
//! - Of two tools whose names would collide, the first one listed is kept.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::models::tool_names::{LONGEST, plain};
use lucid_session::SEPARATOR;

/// The maximum length of a server's own name for a tool, in bytes.
const LONGEST_OWN: usize = 256;

/// The name of a server's tool, without the server's own name. `None` if it has no valid name at
/// all.
pub(super) fn model_name(server: &str, tool: &str) -> Option<String> {
    let environment = LONGEST.checked_sub(server.len() + SEPARATOR.len())?;
    if tool.is_empty() || tool.len() > LONGEST_OWN || tool.contains(char::is_control) {
        return None;
    }
    plain(tool, environment).map(Cow::into_owned)
}

/// The tools' own names, by the names models use.
pub(super) fn own_names<'a>(
    server: &str,
    tools: impl Iterator<Item = &'a str>,
) -> HashMap<String, String> {
    let mut all = HashMap::new();
    for tool in tools {
        if let Some(name) = model_name(server, tool) {
            all.entry(name).or_insert_with(|| tool.to_owned());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plain_name_stays_and_another_is_made_plain_and_kept_apart() {
        assert_eq!(model_name("s", "read_file").as_deref(), Some("read_file"));
        let (dot, slash) = (
            model_name("s", "repo.read").unwrap(),
            model_name("s", "repo/read").unwrap(),
        );
        assert!(dot.starts_with("repo_read_") && slash.starts_with("repo_read_"));
        assert_ne!(dot, slash);
        let long = "x".repeat(200);
        assert_eq!(
            model_name("server", &long).unwrap().len(),
            64 - "server__".len()
        );
        assert_ne!(model_name("s", &long), model_name("s", &format!("{long}y")));
        for none in ["", "a\nb", "\u{0}", &"x".repeat(257)] {
            assert_eq!(model_name("s", none), None, "{none:?}");
        }
    }

    #[test]
    fn of_two_tools_that_would_be_called_alike_the_first_is_there() {
        let changed = model_name("s", "a.b").unwrap();
        for order in [["a.b", &changed], [&changed, "a.b"]] {
            let all = own_names("s", order.into_iter());
            assert_eq!(all.len(), 1);
            assert_eq!(all[&changed], order[0]);
        }
    }

    proptest! {
        #[test]
        fn whatever_a_server_calls_a_tool_its_name_is_one_that_models_take(
            server in "[a-z0-9][a-z0-9_-]{0,31}",
            tool in ".{0,300}",
        ) {
            if let Some(name) = model_name(&server, &tool) {
                let whole = format!("{server}{SEPARATOR}{name}");
                prop_assert!(!name.is_empty() && whole.len() <= 64, "{}", whole);
                prop_assert!(whole.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
                prop_assert_eq!(model_name(&server, &tool), Some(name));
            }
        }
    }
}
