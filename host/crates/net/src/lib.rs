//! Outgoing HTTP on behalf of plugins and operators: which addresses may be contacted, the one client, requests to
//! providers, documents, and OCI registries.

#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod egress;
pub mod fetch;
pub mod oci;
pub mod resolver;
mod tls;
