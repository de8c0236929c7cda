//! The binary `lucid`. All it does is in the library's `cli`.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lucid::cli::main()
}
