//! The process's TLS provider.

/// Installs the process-wide TLS crypto provider: rustls with ring. reqwest is built without one of its own, and
/// panics when a client is created before one is installed.
pub(super) fn prepare_tls() {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
