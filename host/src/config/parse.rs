//! Parsers from a setting's text to its value.
//!
//! # Invariants
//!
//! - A parser accepts exactly what the setting's error message says is allowed, and returns nothing
//!   for everything else. It never guesses what was meant.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use url::Url;

use super::ConfigError;
use super::enums::{AllowedOrigins, NamedValues};
use lucid_net::egress::parse_base_url;
use lucid_types::secret::Secret;

/// The values that are set, by name. None is empty.
pub(super) struct SettingValues(HashMap<String, String>);

impl SettingValues {
    pub(super) fn new(values: impl Iterator<Item = (String, String)>) -> Self {
        Self(
            values
                .filter(|(_, value)| !value.trim().is_empty())
                .collect(),
        )
    }

    pub(super) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.raw(name).map(str::trim)
    }

    pub(super) fn optional<T>(
        &self,
        name: &'static str,
        allowed: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match read(text) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::NotAllowed {
                name,
                value: quoted_value(text),
                allowed,
            }),
        }
    }

    pub(super) fn parsed<T>(
        &self,
        name: &'static str,
        default: T,
        allowed: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        Ok(self.optional(name, allowed, read)?.unwrap_or(default))
    }

    pub(super) fn choice<T: NamedValues>(
        &self,
        name: &'static str,
        default: T,
    ) -> Result<T, ConfigError> {
        self.parsed(name, default, T::ALLOWED, T::from_name)
    }

    pub(super) fn provider(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        let allowed = "a provider's name: letters, digits, - and _, at most 64";
        self.optional(name, allowed, |text| {
            let fits = text.len() <= 64
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
            fits.then(|| text.to_ascii_lowercase())
        })
    }

    /// A model's name, in its provider's spelling.
    pub(super) fn model(&self, name: &'static str) -> Result<Option<String>, ConfigError> {
        let allowed = "a model's name, at most 200 characters and none of them a space or a control character";
        self.optional(name, allowed, |text| {
            is_model(text).then(|| text.to_owned())
        })
    }

    /// A secret that is sent in a header. A character that a header cannot carry would fail at its
    /// first use, with a worse message.
    pub(super) fn header_secret(&self, name: &'static str) -> Result<Option<Secret>, ConfigError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        if text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(Some(Secret::from(text)));
        }
        let allowed = "printable ASCII without spaces or line breaks, since it is sent in a header";
        Err(ConfigError::BadSecret { name, allowed })
    }

    /// A URL with only a server and a path.
    pub(super) fn base_url(&self, name: &'static str) -> Result<Option<Url>, ConfigError> {
        let allowed = "an http or https URL such as https://api.example.com/v1, without user name, password, query or fragment";
        self.url(name, allowed, |text| {
            Url::parse(text).ok().filter(|url| {
                matches!(url.scheme(), "http" | "https")
                    && url.host().is_some()
                    && url.username().is_empty()
                    && url.password().is_none()
                    && url.query().is_none()
                    && url.fragment().is_none()
            })
        })
    }

    /// The address of a model provider's API, as people paste it.
    pub(super) fn model_url(&self, name: &'static str) -> Result<Option<Url>, ConfigError> {
        let allowed = "an http or https URL such as https://api.example.com/v1, without user name, password, key or fragment";
        self.url(name, allowed, |text| parse_base_url(text).ok())
    }

    fn url(
        &self,
        name: &'static str,
        allowed: &'static str,
        read: impl FnOnce(&str) -> Option<Url>,
    ) -> Result<Option<Url>, ConfigError> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match read(text) {
            Some(url) => Ok(Some(url)),
            // A key may precede an @ or follow a ?.
            None if text.contains(['@', '?', '#']) => Err(ConfigError::BadSecret { name, allowed }),
            None => Err(ConfigError::NotAllowed {
                name,
                value: quoted_value(text),
                allowed,
            }),
        }
    }
}

/// A value for an error message: quoted, on one line, and truncated.
pub(super) fn quoted_value(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{:?}…", &text[..at]),
        None => format!("{text:?}"),
    }
}

pub(crate) fn is_model(text: &str) -> bool {
    !text.is_empty() && text.len() <= 200 && !text.contains(unprintable)
}

pub(super) fn unprintable(c: char) -> bool {
    c.is_control() || c.is_whitespace()
}

pub(super) fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    // `parse` accepts a leading plus sign, which nobody means here.
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

pub(super) fn count(text: &str) -> Option<u32> {
    number(text).filter(|count| (1..=10_000).contains(count))
}

/// Converts dollars to millionths with integers, so that no limit has a rounding error.
pub(super) fn dollars(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if part.is_empty() || part.len() > 6 {
        return None;
    }
    let whole = number::<u64>(whole)?.checked_mul(1_000_000)?;
    let places = 6 - u32::try_from(part.len()).ok()?;
    let part = number::<u64>(part)? * 10_u64.pow(places);
    whole.checked_add(part)
}

/// Parses a duration within bounds in seconds.
pub(super) fn seconds(text: &str, least: f64, most: f64) -> Option<Duration> {
    // NaN fails both comparisons, so it is not in any range.
    let seconds = time(text).filter(|seconds| (least..=most).contains(seconds))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Parses a duration to seconds: a number of seconds, or numbers with units, such as `300`, `300s`,
/// `5m`, `1h30m` or `500ms`.
pub(crate) fn time(text: &str) -> Option<f64> {
    let text = text.trim().to_ascii_lowercase();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let mut total = 0.0;
    let mut least_unit = f64::INFINITY;
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (amount, behind) = rest.split_at(end);
        let behind = behind.trim_start();
        let end = behind
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        let unit = unit_of_time(unit)?;
        // In descending order, each unit once: anything else is a mistake.
        if unit >= least_unit {
            return None;
        }
        total += amount.parse::<f64>().ok()? * unit;
        least_unit = unit;
        rest = behind.trim_start();
    }
    (least_unit < f64::INFINITY).then_some(total)
}

fn unit_of_time(unit: &str) -> Option<f64> {
    Some(match unit {
        "ms" => 0.001,
        "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        _ => return None,
    })
}

/// Parses a size in Docker's notation: a number with the suffix b, k, m, g or t, or kb or KiB, or
/// Ki as in Kubernetes. All of them are powers of 1024.
pub(crate) fn size(text: &str) -> Option<u64> {
    let text = text.to_ascii_lowercase();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return None,
    };
    let factor = 1u64 << shift;
    match amount.split_once('.') {
        None => number::<u64>(amount)?.checked_mul(factor),
        Some((whole, part)) => {
            // With integers, so that no size has a rounding error. Nine digits are more than any
            // size needs.
            if part.is_empty() || part.len() > 9 {
                return None;
            }
            let whole = u128::from(number::<u64>(whole)?);
            let scale = 10u128.pow(u32::try_from(part.len()).ok()?);
            let bytes =
                (whole * scale + u128::from(number::<u64>(part)?)) * u128::from(factor) / scale;
            u64::try_from(bytes).ok()
        }
    }
}

pub(super) fn ip(text: &str) -> Option<IpAddr> {
    if text.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse().ok()
}

pub(super) fn origins(text: &str) -> Option<AllowedOrigins> {
    if text == "*" {
        return Some(AllowedOrigins::Any);
    }
    let mut list: Vec<String> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let url = Url::parse(part).ok()?;
        let bare = matches!(url.scheme(), "http" | "https")
            && !part.contains(['*', '@', '?', '#', '\\'])
            && url.path() == "/";
        let origin = url.origin().ascii_serialization();
        if !bare {
            return None;
        }
        if !list.contains(&origin) {
            list.push(origin);
        }
    }
    (!list.is_empty()).then_some(AllowedOrigins::List(list))
}

/// A value that a claim of a token must have, to the letter.
pub(super) fn claim(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.chars().count() <= 255 && !text.contains(unprintable);
    fits.then(|| text.to_owned())
}

pub(super) fn audiences(text: &str) -> Option<Vec<String>> {
    let parts = text.split(',').map(str::trim);
    let list: Option<Vec<_>> = parts.filter(|part| !part.is_empty()).map(claim).collect();
    list.filter(|list| !list.is_empty())
}

pub(super) fn mount_path(text: &str) -> Option<String> {
    let path = text.strip_prefix('/')?.trim_end_matches('/');
    // A colon would end the path where it becomes part of a PATH or a mount option.
    let fits = !path.is_empty()
        && !path.contains(|c: char| c.is_control() || c == ':')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    fits.then(|| format!("/{path}"))
}

/// A valid name of a container or a network.
pub(super) fn container_name(text: &str) -> Option<String> {
    let first = text.bytes().next()?.is_ascii_alphanumeric();
    let rest = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    (first && rest && text.len() <= 64).then(|| text.to_owned())
}

/// An image's name. Other errors in it are reported better by the engine.
pub(super) fn image(text: &str) -> Option<String> {
    let fits = text.len() <= 255 && !text.contains(unprintable) && !text.starts_with('-');
    fits.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_of_seconds_or_amounts_with_units() {
        for (text, expected) in [
            ("300", 300.0),
            ("0", 0.0),
            ("1.5", 1.5),
            ("300s", 300.0),
            ("5m", 300.0),
            ("5 min", 300.0),
            ("1h30m", 5400.0),
            ("1h 30m", 5400.0),
            ("1.5h", 5400.0),
            ("500ms", 0.5),
            ("1s500ms", 1.5),
            ("2d", 172_800.0),
            ("10M", 600.0),
            ("2 hours", 7200.0),
        ] {
            assert_eq!(time(text), Some(expected), "{text}");
        }
        for text in [
            "", "m", "5x", "5m5m", "30m1h", "1h30", "-5m", "5 5", "soon", "1..5s", "5mm", "0x5",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
        assert_eq!(seconds("2h", 1.0, 3600.0), None);
        assert_eq!(seconds("-1", 0.0, 3600.0), None);
        assert_eq!(seconds("1h", 1.0, 3600.0), Some(Duration::from_secs(3600)));
        assert_eq!(seconds("nan", 0.0, 3600.0), None);
    }
}
