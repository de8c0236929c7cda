//! The recorder behind the metrics, and their text for Prometheus.
//!
//! # Invariants
//!
//! - There is one recorder in a process, which is there before anything is recorded.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;

use lucid_types::metrics::{self as recorded, MetricKind};

/// How often measured values are put into their buckets: until then each takes up memory.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecorderError {
    #[error("the buckets of a histogram are not valid: {0}")]
    Buckets(#[from] BuildError),
    #[error("this process has another recorder already")]
    Other,
}

/// The recorder of this process.
pub(crate) struct Recorder {
    handle: PrometheusHandle,
    process: Collector,
}

impl Recorder {
    /// Makes the recorder, and has everything recorded from here on.
    pub(crate) fn install() -> Result<(), RecorderError> {
        let mut builder = PrometheusBuilder::new();
        for metric in recorded::ALL {
            if let MetricKind::Histogram(bounds) = metric.kind {
                let name = Matcher::Full(metric.name.to_owned());
                builder = builder.set_buckets_for_metric(name, bounds)?;
            }
        }
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| RecorderError::Other)?;
        for metric in recorded::ALL {
            match metric.kind {
                MetricKind::Counter => describe_counter!(metric.name, metric.help),
                MetricKind::Gauge => describe_gauge!(metric.name, metric.help),
                MetricKind::Histogram(_) => describe_histogram!(metric.name, metric.help),
            }
        }
        let process = Collector::default();
        process.describe();
        let upkeep = handle.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        let _ = RECORDER.set(Self { handle, process });
        recorded::turn_on();
        Ok(())
    }

    /// The recorder, if metrics are served.
    pub(crate) fn installed() -> Option<&'static Self> {
        RECORDER.get()
    }

    /// All metrics, in Prometheus' text format.
    pub(crate) fn render(&self) -> String {
        self.process.collect();
        self.handle.render()
    }
}
