//! Reads from a server's headers when it wants the request to be retried.
//!
//! # Invariants
//! - A header that cannot be parsed counts as absent.
//! - A date in the past means at once.

use std::time::SystemTime;

use lucid_types::wit::types::Header;

/// Milliseconds to wait, from `retry-after-ms`, or from `retry-after` in seconds or as a date.
pub fn retry_after_ms(headers: &[Header], now: SystemTime) -> Option<u64> {
    let header = |name: &str| {
        let found = headers.iter().find(|header| header.name == name);
        found.map(|header| header.value.trim())
    };
    let number = |text: &str| {
        let value: f64 = text.parse().ok()?;
        (value.is_finite() && value >= 0.0).then_some(value)
    };
    // A float that is too large saturates, which is past every limit.
    if let Some(millis) = header("retry-after-ms").and_then(number) {
        return Some(millis as u64);
    }
    let after = header("retry-after")?;
    if let Some(seconds) = number(after) {
        return Some((seconds * 1_000.0) as u64);
    }
    let date = httpdate::parse_http_date(after).ok()?;
    // A date in the past means at once.
    let left = date.duration_since(now).unwrap_or_default();
    u64::try_from(left.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use lucid_mutations::mutated_text;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retry_after_is_read_in_seconds_in_milliseconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2026 07:28:00 GMT").unwrap();
        let read = |name: &str, value: &str| {
            let header = Header {
                name: name.to_owned(),
                value: value.to_owned(),
            };
            retry_after_ms(&[header], now)
        };
        assert_eq!(read("retry-after", "2"), Some(2_000));
        assert_eq!(read("retry-after", " 0.5 "), Some(500));
        assert_eq!(read("retry-after-ms", "250"), Some(250));
        let date = |text| read("retry-after", text);
        assert_eq!(date("Wed, 21 Oct 2026 07:28:03 GMT"), Some(3_000));
        assert_eq!(date("Wed, 21 Oct 2026 07:27:00 GMT"), Some(0));
        for wrong in ["-1", "NaN", "inf", "", "tomorrow"] {
            assert_eq!(read("retry-after", wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_a_delay_or_none(
            text in mutated_text(["2", "0.5", "Wed, 21 Oct 2026 07:28:03 GMT", "Wednesday, 21-Oct-26 07:28:03 GMT"]),
        ) {
            for name in ["retry-after", "retry-after-ms"] {
                let header = Header { name: name.to_owned(), value: text.clone() };
                let _ = retry_after_ms(&[header], SystemTime::UNIX_EPOCH);
            }
        }
    }
}
