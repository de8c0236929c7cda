//! Statistics of a plugin's calls since it was loaded.
//!
//! # Invariants
//! - Every call that began is counted once, under the name of the called function.
//! - An error that the plugin returned is counted apart from a call that trapped or hit a limit.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::limits::{CallError, CallUsage};

/// Upper bound of a call's duration, in microseconds: the call's deadline ends it before.
const LONGEST: u64 = 10 * 60 * 1_000_000;

/// Counts the calls of one plugin.
#[derive(Debug, Default)]
pub(super) struct CallStats(Mutex<BTreeMap<&'static str, FunctionStats>>);

#[derive(Debug)]
struct FunctionStats {
    figures: CallFigures,
    /// Durations in microseconds, to two significant digits; `None` if the histogram cannot be
    /// created.
    micros: Option<Histogram<u64>>,
}

/// The figures of one of a plugin's functions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallFigures {
    /// The function, such as `step`.
    pub call: &'static str,
    /// How often it was called.
    pub calls: u64,
    /// How often it answered with an error of its own.
    pub refusals: u64,
    /// How often it broke down or met a limit.
    pub failures: u64,
    /// Half of the calls took no longer, in microseconds.
    pub p50_micros: u64,
    /// Of a hundred calls one took longer, in microseconds.
    pub p99_micros: u64,
    /// The most that one call used; instructions, roughly.
    pub most_fuel: u64,
    /// All calls together.
    pub fuel: u64,
    /// The most memory that one call had, in bytes.
    pub most_memory: u64,
}

impl CallStats {
    /// Counts a call that ended, successfully or not.
    pub(super) fn count<T>(
        &self,
        call: &'static str,
        used: &CallUsage,
        result: &Result<T, CallError>,
    ) {
        let mut all = self.0.lock();
        let of = all.entry(call).or_insert_with(|| FunctionStats::new(call));
        let figures = &mut of.figures;
        figures.calls += 1;
        match result {
            Ok(_) => {}
            Err(CallError::Plugin { .. }) => figures.refusals += 1,
            Err(_) => figures.failures += 1,
        }
        figures.most_fuel = figures.most_fuel.max(used.fuel);
        figures.fuel = figures.fuel.saturating_add(used.fuel);
        figures.most_memory = figures.most_memory.max(used.memory_bytes);
        if let Some(micros) = &mut of.micros {
            micros.saturating_record(used.micros);
        }
    }

    /// The statistics so far, by function.
    pub(super) fn figures(&self) -> Vec<CallFigures> {
        let all = self.0.lock();
        all.values()
            .map(|of| {
                let at = |part| {
                    of.micros
                        .as_ref()
                        .map_or(0, |all| all.value_at_quantile(part))
                };
                CallFigures {
                    p50_micros: at(0.5),
                    p99_micros: at(0.99),
                    ..of.figures.clone()
                }
            })
            .collect()
    }
}

impl FunctionStats {
    fn new(call: &'static str) -> Self {
        Self {
            figures: CallFigures {
                call,
                calls: 0,
                refusals: 0,
                failures: 0,
                p50_micros: 0,
                p99_micros: 0,
                most_fuel: 0,
                fuel: 0,
                most_memory: 0,
            },
            micros: Histogram::new_with_max(LONGEST, 2).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::CallSite;
    use super::*;
    use lucid_types::wit::types::Error;

    #[test]
    fn calls_are_counted_by_function_and_a_refusal_is_no_failure() {
        let tally = CallStats::default();
        let at = || CallSite {
            plugin: "coder".into(),
            call: "step",
        };
        for number in 1..=100 {
            let used = CallUsage {
                fuel: number,
                memory_bytes: 1_000 - number,
                micros: number * 1_000,
            };
            let result = match number {
                7 => Err(CallError::OutOfFuel { at: at(), limit: 1 }),
                8 | 9 => Err(CallError::Plugin {
                    at: at(),
                    error: Error::invalid("no"),
                }),
                _ => Ok(()),
            };
            tally.count("step", &used, &result);
        }
        let endless = CallUsage {
            micros: u64::MAX,
            fuel: u64::MAX,
            ..CallUsage::default()
        };
        tally.count("migrate", &endless, &Ok(()));
        tally.count("migrate", &endless, &Ok(()));

        let all = tally.figures();
        let [migrate, step] = &all[..] else {
            panic!("{all:?}")
        };
        assert_eq!((step.calls, step.refusals, step.failures), (100, 2, 1));
        assert_eq!(
            (step.fuel, step.most_fuel, step.most_memory),
            (5_050, 100, 999)
        );
        let near = |found: u64, meant: u64| found.abs_diff(meant) <= meant / 50;
        assert!(near(step.p50_micros, 50_000), "{step:?}");
        assert!(near(step.p99_micros, 99_000), "{step:?}");
        assert_eq!((migrate.calls, migrate.fuel), (2, u64::MAX));
        assert!(migrate.p50_micros >= LONGEST, "{migrate:?}");
    }
}
