//! Counts and sizes for a person to read: "1 line", "2 lines", "9.8 GiB".

use std::fmt::Display;

/// A number and a noun, given in the singular, whose plural is formed with an s.
pub fn count<N: Copy + Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let s = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{s}")
}

/// A number of bytes in the largest unit that it reaches, rounded to one decimal place, which is left out where it is
/// zero: "512 bytes", "1 MiB", "9.8 GiB". The crate `bytesize` writes "512 B" and "1.0 MiB".
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let power = bytes.checked_ilog2().unwrap_or(0) / 10;
    if power == 0 {
        return count(bytes, "byte");
    }
    let power = UNITS.len().min(power as usize);
    // For showing only: rounding is fine.
    let amount = format!("{:.1}", bytes as f64 / 1024_f64.powi(power as i32));
    let amount = amount.strip_suffix(".0").unwrap_or(&amount);
    format!("{amount} {}", UNITS[power - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_all_else_is_not() {
        let counted: Vec<String> = (0..3_u64).map(|number| count(number, "line")).collect();
        assert_eq!(counted, ["0 lines", "1 line", "2 lines"]);
        assert_eq!(count(1_usize, "more byte"), "1 more byte");
    }

    #[test]
    fn sizes_are_for_people() {
        let sizes = [0, 1, 1023, 1024, 1536, 1 << 20, 10 << 30, u64::MAX].map(size);
        assert_eq!(
            sizes,
            [
                "0 bytes",
                "1 byte",
                "1023 bytes",
                "1 KiB",
                "1.5 KiB",
                "1 MiB",
                "10 GiB",
                "16777216 TiB"
            ]
        );
    }
}
