//! A real PostgreSQL with the migrations for Supabase, behind a real PostgREST: what the database
//! itself refuses, what both stores of chats do alike, and sessions whose store goes away.

mod api;
mod outage;
mod policies;
mod projects;
mod suite;
