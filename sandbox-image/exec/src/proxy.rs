//! The loopback port at which programs find the host's proxy.
//!
//! The server only listens. The host accepts the connections, on the listener that it is handed, so
//! no process of the sandbox stands between a program and the proxy, and the sandbox's network stays
//! empty.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

/// What is not asked of the proxy: the sandbox's own servers.
const NOT_PROXIED: &str = "localhost,127.0.0.1,::1";

/// The listening socket.
pub(crate) struct ProxyListener {
    socket: TcpListener,
    port: u16,
}

impl ProxyListener {
    /// Listens at a port, or at any that is free for 0.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = socket.local_addr()?.port();
        Ok(Self { socket, port })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What the host is handed.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The variables by which programs find the proxy. All name it as an HTTP proxy: some programs
    /// fail at the sight of a SOCKS proxy that they cannot speak with, even where they need none.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let url = format!("http://127.0.0.1:{}", self.port);
        let proxied = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
        // curl reads the first of these in lower case only.
        let lower = ["http_proxy", "https_proxy", "all_proxy"];
        let mut variables: Vec<_> = proxied
            .into_iter()
            .chain(lower)
            .map(|name| (name, url.clone()))
            .collect();
        variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, NOT_PROXIED.to_owned())));
        // Node.js reads the variables above only if it is told to.
        variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
        variables.push(("MAVEN_OPTS", self.java_properties()));
        variables
    }

    /// The same for the Java virtual machine, which reads no such variables.
    fn java_properties(&self) -> String {
        let properties = ["http", "https"].map(|scheme| {
            format!(
                "-D{scheme}.proxyHost=127.0.0.1 -D{scheme}.proxyPort={}",
                self.port
            )
        });
        properties.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_names_the_port_that_is_listened_at() {
        let listener = ProxyListener::bind(0).unwrap();
        let port = listener.port().to_string();
        assert_ne!(listener.port(), 0);
        for (name, value) in listener.environment() {
            let names_port = value.contains(&port);
            let is_other = ["NO_PROXY", "no_proxy", "NODE_USE_ENV_PROXY"].contains(&name);
            assert!(names_port != is_other, "{name}={value}");
        }
    }
}
