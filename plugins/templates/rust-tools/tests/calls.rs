//! Calls played without a host, a sandbox or a server.

use lucid_plugin::testing::{Call, definitions};
use lucid_plugin::tools::Program;
use lucid_plugin::types::ErrorKind;
use my_agent::MyAgent;

#[test]
fn open_work_is_found_in_a_folder_and_what_a_model_writes_is_no_command() {
    let mut call = Call::<MyAgent>::begin("open_work", r#"{"folder": "-x; rm -rf ."}"#);
    let Program::Argv(argv) = &call.command().program else {
        panic!("a shell would read it");
    };
    assert_eq!(argv[argv.len() - 2..], ["--", "-x; rm -rf ."]);
    call.prints("src/lib.rs:7: TODO", 0);
    assert_eq!(call.reply().text, "src/lib.rs:7: TODO");
}

#[test]
fn no_open_work_is_no_error() {
    let mut call = Call::<MyAgent>::begin("open_work", "{}");
    call.prints("", 1);
    assert_eq!((call.reply().is_error, call.reply().text.as_str()), (false, "There are none."));
}

#[test]
fn a_busy_server_is_asked_again_and_not_for_ever() {
    let mut call = Call::<MyAgent>::begin("ticket", r#"{"id": "T-7"}"#);
    assert_eq!(call.request().path, "/tickets/T-7");
    call.responds(503, "");
    call.responds(200, r#"{"title": "It is slow", "text": "Since Monday."}"#);
    assert_eq!(call.reply().text, "It is slow\n\nSince Monday.");
    let mut call = Call::<MyAgent>::begin("ticket", r#"{"id": "T-7"}"#);
    (0..3).for_each(|_| call.responds(503, ""));
    assert!(call.reply().is_error);
}

#[test]
fn what_a_model_writes_wrongly_it_is_told() {
    for arguments in ["", "{}", r#"{"id": "../../admin"}"#] {
        let call = Call::<MyAgent>::begin("ticket", arguments);
        assert_eq!(call.error().kind, ErrorKind::InvalidInput, "{arguments}");
    }
}

#[test]
fn the_word_is_the_deployments() {
    let tools = definitions::<MyAgent>(r#"{"word": "FIXME"}"#);
    assert!(tools[0].description.contains("FIXME"));
}
