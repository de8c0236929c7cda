//! Runs the conformance suite on the adapter.

mod valid;

use lucid_conformance::Suite;
use lucid_openai::OpenAi;

fn suite() -> Suite<OpenAi> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded");
    Suite::new(folder, valid::valid)
}

#[test]
fn every_recorded_answer_means_the_same_however_it_is_cut() {
    suite().answers();
}

#[test]
fn any_damaged_answer_is_an_answer_or_an_error_however_it_is_cut() {
    suite().mutated_answers();
}

#[test]
fn every_recorded_refusal_is_told_for_what_it_is() {
    suite().refusals();
}

#[test]
fn requests_keep_to_the_providers_rules() {
    suite().requests();
}

#[test]
fn any_transcript_becomes_a_valid_request() {
    suite().any_transcript();
}
