//! `lucid serve`: from the settings to a listening server, and its end.
//!
//! # Invariants
//!
//! - `listening on http://…` is printed, with the real port, once everything works.
//! - On SIGINT, SIGTERM or SIGHUP clients are told and sessions are left in the log for the next start, all
//!   within `DRAIN_TIME` and `SHUTDOWN_TIMEOUT`. From the signal on no new session is taken. A second signal ends the process at once, also while the server starts.
//! - A start that fails for a reason that may pass is tried again for a while; any other ends the process.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinError;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::descriptors;
use super::report::announce;
use super::{DAY, failed, interrupted, not_started};
use crate::api::Api;
use crate::config::Config;
use crate::listener::{self, ConnectionBudget, ConnectionLimits, ConnectionTimeouts};
use crate::prometheus::Recorder;
use crate::server::{App, ResumeMode, StartError};
use lucid_types::user::UserId;

/// Which part of the time for a shutdown requests that are under way may take.
const LAST_REQUESTS: f64 = 0.2;
/// How long a start is made again that fails for a reason that may pass.
const START_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Between two attempts.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Who the token of local mode stands for.
pub(super) const LOCAL_USER: &str = "local";

/// Serves until it is told to stop.
pub(super) async fn serve(config: Config, resume: ResumeMode) -> ExitCode {
    for warning in config.notes() {
        tracing::warn!("{warning}");
    }
    // First, so that a second server on the same port says so at once.
    let address = config.address();
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => {
            return failed(&format!(
                "Nothing can listen on {address}: {error}. Choose another HOST or PORT."
            ));
        }
    };
    let metrics_listener = match config.metrics_listen {
        None => None,
        Some(address) => match TcpListener::bind(address).await {
            Ok(listener) => Some(listener),
            Err(error) => {
                return failed(&format!(
                    "Nothing can listen on {address}: {error}. Choose another METRICS_LISTEN."
                ));
            }
        },
    };
    if (metrics_listener.is_some() || config.internal_api_key.is_some())
        && let Err(error) = Recorder::install()
    {
        tracing::error!("no metrics are recorded: {error}");
    }
    let (drain, patience) = (config.drain_time, config.shutdown_timeout);
    // From here on there may be something to bring to an end.
    let mut stop = Box::pin(interrupted());
    let started = tokio::select! {
        started = retry_transient(async || Box::pin(App::start(config.clone())).await) => started,
        signal = &mut stop => {
            tracing::info!(signal, "stopped while the server started");
            return ExitCode::SUCCESS;
        }
    };
    let app = match started {
        Ok(app) => app,
        Err(error) => return not_started(&error),
    };
    let address = listener.local_addr().unwrap_or(address);
    let recovered = tokio::select! {
        recovered = retry_transient(async || app.recover(resume).await) => recovered,
        signal = &mut stop => {
            // Some of the sessions may run already.
            start_shutdown(signal, patience);
            app.shutdown(Instant::now() + patience).await;
            return ExitCode::SUCCESS;
        }
    };
    if let Err(error) = recovered {
        return failed(&format!(
            "Could not resume sessions from the previous run: {}",
            error.sentence()
        ));
    }
    let keys = app.auth().follow();
    let following = (
        app.deployment().watch_manifest(),
        app.deployment().watch_probations(),
    );
    let api = app.api();
    let metrics = metrics_listener.map(|listener| serve_metrics(listener, api.clone()));
    print_banner(&app, address);
    let end = Arc::<OnceLock<Instant>>::default();
    let served = run(&app, api, listener, stop, (drain, patience, end.clone())).await;
    drop((following, keys));
    let end = *end.get_or_init(|| Instant::now() + patience);
    app.shutdown(end).await;
    drop(metrics);
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => failed(&format!("The listener broke down: {cause}.")),
    }
}

/// Serves until `drain` after `stop`; sets when the shutdown must be over, `patience` from then.
///
/// # Errors
/// Fails if the listener panicked.
async fn run(
    app: &App,
    api: Api,
    listener: TcpListener,
    stop: impl Future<Output = &'static str> + Send + 'static,
    (drain, patience, end): (Duration, Duration, Arc<OnceLock<Instant>>),
) -> Result<(), JoinError> {
    let router = app.router(api.clone());
    let (stop_sender, stopping) = tokio::sync::oneshot::channel::<Instant>();
    let goodbye = async move {
        let signal = stop.await;
        api.drain();
        start_shutdown(signal, drain + patience);
        if !drain.is_zero() {
            tracing::info!(
                seconds = drain.as_secs_f64(),
                "no new sessions are taken; those that there are go on until then"
            );
            tokio::time::sleep(drain).await;
        }
        let begun = Instant::now();
        let _ = end.set(begun + patience);
        let requests = begun + patience.mul_f64(LAST_REQUESTS);
        // Connections of WebSockets are no requests any more, so the server does not wait for them.
        let _ = timeout_at(
            begun + patience.mul_f64(LAST_REQUESTS / 2.0),
            api.close_sockets(),
        )
        .await;
        let _ = stop_sender.send(requests);
    };
    let limits = ConnectionLimits::for_descriptors(descriptors::limit());
    let connections = (ConnectionBudget::new(limits), ConnectionTimeouts::default());
    // In a task, since each connection that this thread accepts would be handed to another.
    let mut serving = tokio::spawn(listener::serve(listener, router, connections, goodbye));
    let overdue = async {
        // An error means that there was no signal, and then the server ended by itself.
        match stopping.await {
            Ok(requests) => tokio::time::sleep_until(requests).await,
            Err(_) => std::future::pending::<()>().await,
        }
    };
    tokio::select! {
        served = &mut serving => served,
        () = overdue => {
            serving.abort();
            // Cancelled, or over just now.
            let _ = serving.await;
            Ok(())
        }
    }
}

/// Serves metrics at an address of their own, until this is dropped: also while the server stops.
fn serve_metrics(listener: TcpListener, api: Api) -> AbortOnDropHandle<()> {
    if let Ok(address) = listener.local_addr() {
        announce(&format!("metrics at http://{address}/metrics"));
    }
    let budget = ConnectionBudget::new(ConnectionLimits::few());
    let connections = (budget, ConnectionTimeouts::default());
    let router = api.metrics_router();
    AbortOnDropHandle::new(tokio::spawn(listener::serve(
        listener,
        router,
        connections,
        std::future::pending(),
    )))
}

/// Makes an attempt to start again for as long as its failure may pass: a service manager that starts a
/// server just while its disk is full or its database is locked need not do it again.
async fn retry_transient<T>(
    mut attempt: impl AsyncFnMut() -> Result<T, StartError>,
) -> Result<T, StartError> {
    let until = Instant::now() + START_PATIENCE;
    let mut is_told = false;
    loop {
        let failed = match attempt().await {
            Err(error) if error.is_transient() && Instant::now() < until => error,
            result => return result,
        };
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                seconds = START_PATIENCE.as_secs(),
                "the server cannot start yet, and tries again: {failed}"
            );
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

/// The time for the shutdown begins, and a second signal does not wait for it.
fn start_shutdown(signal: &str, patience: Duration) {
    tracing::info!(signal, seconds = patience.as_secs_f64(), "stopping");
    let again = interrupted();
    tokio::spawn(async {
        again.await;
        std::process::exit(130);
    });
    force_exit_after(patience);
}

/// Ends the process when its time is up, whatever still waits (a disk, a lock): a service manager would
/// kill it, and nothing that is left is lost.
fn force_exit_after(patience: Duration) {
    let overdue = move || {
        std::thread::sleep(patience);
        tracing::warn!("the time for the shutdown is up; the process ends with work unfinished");
        std::process::exit(0);
    };
    let _ = std::thread::Builder::new()
        .name("shutdown".to_owned())
        .spawn(overdue);
}

/// What a person needs to begin. The last line says that the server is ready.
fn print_banner(app: &App, address: SocketAddr) {
    if app.config().local {
        announce(
            "local mode: neither SUPABASE_JWT_SECRET nor SUPABASE_URL is set, so only this machine can connect",
        );
        announce(&format!("try it at http://{address}/docs"));
        match app
            .auth()
            .issue_admin(&UserId::from(LOCAL_USER), Duration::from_secs(30 * DAY))
        {
            Ok(token) => announce(&format!("token: {token}")),
            Err(error) => tracing::error!("{error}"),
        }
    }
    announce(&format!("listening on http://{address}"));
}
