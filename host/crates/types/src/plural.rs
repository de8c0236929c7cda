//! Counts in words for a person to read: "1 line", "2 lines".

use std::fmt::Display;

/// A number and a noun, given in the singular, whose plural is formed with an s.
pub fn count<N: Copy + Display + PartialEq + From<u8>>(number: N, what: &str) -> String {
    let s = if number == N::from(1) { "" } else { "s" };
    format!("{number} {what}{s}")
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
}
