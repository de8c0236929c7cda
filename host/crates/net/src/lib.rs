//! Outgoing HTTP on behalf of plugins and operators: which addresses may be contacted, the one client, requests to
//! providers, documents, and OCI registries.
//!
//! # Layout
//! - `address` decides about one address, `resolver` about the addresses of a name, and `client` makes every HTTP client;
//!   `tls` prepares what they trust.
//! - `egress`: requests that plugins want, with the deployment's keys, redacted on the way back.
//! - `fetch`: a document from an address that the operator named. `oci`: components from registries.

#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod egress;
pub mod fetch;
pub mod oci;
pub mod resolver;
mod tls;
