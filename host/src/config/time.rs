//! How a time is written: `90`, `90s`, `1.5m`, `2h`, `1d`, `500ms`; without a unit it is seconds.
//!
//! What always holds: what is not such a time is none; nothing is guessed.

use std::time::Duration;

/// The time that a text says.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let text = text.trim().to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let seconds = match unit.trim_start() {
        "ms" => 0.001,
        "" | "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3_600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    };
    let digits = amount.starts_with(|c: char| c.is_ascii_digit()) && !amount.ends_with('.');
    let amount: f64 = digits.then(|| amount.parse().ok())??;
    Duration::try_from_secs_f64(amount * seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit_and_seconds_without_one() {
        for (text, seconds) in [
            ("0", 0.0),
            ("300", 300.0),
            ("300s", 300.0),
            (" 5m ", 300.0),
            ("5 min", 300.0),
            ("1.5m", 90.0),
            ("2H", 7_200.0),
            ("1d", 86_400.0),
            ("500ms", 0.5),
        ] {
            assert_eq!(time(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in [
            "", "m", "soon", "-1", "+1", "5 x", "1m30s", "1.", ".5", "1..2s", "inf", "1e3",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
