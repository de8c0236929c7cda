//! Owns `lucid serve`: from the settings to a listening server, and its end.
//!
//! What always holds: `listening on http://…` is printed once everything works, with the real port;
//! on SIGINT or SIGTERM clients are told, sessions are left in the log for the next start, and a
//! second signal ends the process at once.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::report::announce;
use super::{DAY, failed, interrupted, wrong, wrong_manifest};
use crate::app::{App, StartError};
use crate::auth::UserId;
use crate::config::Config;

/// How long requests that are under way may take at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(10);
/// Who the token of local mode stands for.
pub(super) const LOCAL_USER: &str = "local";

/// Serves until it is told to stop.
pub(super) async fn serve(config: Config) -> ExitCode {
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
    let app = match Box::pin(App::start(config)).await {
        Ok(app) => app,
        Err(StartError::Config(error)) => return wrong(&error),
        Err(StartError::Deployment(problems)) => return wrong_manifest(&problems),
        Err(error) => return failed(&error.to_string()),
    };
    let address = listener.local_addr().unwrap_or(address);
    // From here on there is something to bring to an end.
    let stop = interrupted();
    match app.recover().await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "sessions of the last run go on"),
        Err(error) => {
            return failed(&format!(
                "The sessions of the last run cannot be gone on with. {error}"
            ));
        }
    }
    let keys = app.auth().follow();
    let following = (app.generations().follow(), app.generations().judge());
    welcome(&app, address);
    let served = run(&app, listener, stop).await;
    drop((following, keys));
    app.shutdown().await;
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("The server ended: {error}.")),
    }
}

async fn run(
    app: &App,
    listener: TcpListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let api = app.api();
    let router = app.router(api.clone());
    let (told, stopping) = tokio::sync::oneshot::channel::<()>();
    let goodbye = async move {
        stop.await;
        tracing::info!("stopping");
        let again = interrupted();
        tokio::spawn(async {
            again.await;
            std::process::exit(130);
        });
        // Connections of WebSockets are no requests any more, so the server does not wait for them.
        let _ = timeout(LAST_REQUESTS, api.close_sockets()).await;
        let _ = told.send(());
    };
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // A frame is small, and somebody waits for it.
        let _ = stream.set_nodelay(true);
    });
    let serving = axum::serve(listener, router).with_graceful_shutdown(goodbye);
    let overdue = async {
        // An error means that there was no signal, and then the server ended by itself.
        if stopping.await.is_ok() {
            tokio::time::sleep(LAST_REQUESTS).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        served = std::future::IntoFuture::into_future(serving) => served,
        () = overdue => Ok(()),
    }
}

/// What a person needs to begin. The last line says that the server is ready.
fn welcome(app: &App, address: SocketAddr) {
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
