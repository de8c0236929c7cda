//! Tests that a compilation is visible while it lasts.

use std::fmt::Write as _;

use super::*;
use crate::ActivityKind;

/// A component that does nothing and whose code takes a while to compile.
fn long() -> Vec<u8> {
    let mut functions = String::new();
    for number in 0..3000 {
        write!(
            functions,
            "(func (export \"f{number}\") (param i32) (result i32)
                (local i32)
                (loop $l
                    (local.set 1 (i32.add (local.get 1) (i32.mul (local.get 0) (i32.const {number}))))
                    (br_if $l (i32.lt_u (local.get 1) (i32.const 1000))))
                (local.get 1))"
        )
        .unwrap();
    }
    wat::parse_str(format!("(component (core module {functions}))")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_that_is_compiled_is_in_the_list_while_that_lasts() {
    let engine = Engine::new(EngineOptions::default()).unwrap();
    let (own, wasm) = (engine.clone(), long());
    let compiling = tokio::task::spawn_blocking(move || own.compile("long", &wasm).is_ok());
    let mut seen = false;
    while !compiling.is_finished() {
        let list = engine.activities().list();
        seen |= list
            .iter()
            .any(|work| work.subject == "long" && work.kind == ActivityKind::Compiling);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(compiling.await.unwrap(), "it is a component");
    assert!(seen, "it was never in the list");
    assert!(engine.activities().list().is_empty());
}
