//! Outgoing HTTP on behalf of plugins and operators: which addresses may be contacted, requests to
//! providers, documents, and OCI registries.

pub mod address;
pub mod egress;
pub mod fetch;
pub mod oci;
pub mod resolver;
