use std::cell::Cell;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use lucid_mutations::mutated;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::*;
use crate::compiler::CompileError;
use crate::testing::{engine, many_locals, type_chain};
use crate::{LoadError, PluginLimits, PolicyPlugin};

/// The figure for which a component is refused.
fn exceeded(wasm: &[u8]) -> Bound {
    match check(wasm) {
        Err(BoundsError::Exceeded { bound, found }) => {
            assert!(found > bound.limit());
            bound
        }
        other => panic!("{other:?}"),
    }
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(format!("(component {text})")).unwrap()
}

#[test]
fn a_guest_is_below_half_of_each_bound() {
    let released = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../wit/released/0.1.0");
    for guest in ["git", "llm", "policy", "tools"] {
        let wasm = std::fs::read(format!("{released}/{guest}.wasm")).unwrap();
        let mut scan = Scan::new();
        scan.run(&wasm).unwrap();
        for bound in Bound::ALL {
            let found = scan.figures.of(*bound);
            assert!(found * 2 <= bound.limit(), "{guest}: {found} {bound:?}");
        }
    }
}

#[tokio::test]
async fn a_function_of_many_locals_and_loops_is_refused_before_it_is_compiled() {
    let wasm = many_locals(49_000, 1_000);
    assert!(wasm.len() < 300_000, "{} bytes", wasm.len());
    let engine = engine();
    let started = Instant::now();
    let refused = PolicyPlugin::load(&engine, "bad", &wasm, &PluginLimits::default()).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    let refused = refused.unwrap_err();
    assert!(matches!(refused, LoadError::TooComplex { .. }));
    assert_eq!(
        refused.to_string(),
        "the plugin `bad` has 49000 locals in one function, and at most 5000 are compiled; report it to the plugin's author"
    );
}

#[test]
fn what_a_compiler_carries_from_block_to_block_is_bounded() {
    assert_eq!(
        exceeded(&many_locals(4_000, 1_000)),
        Bound::LocalsTimesBlocks
    );
    // Each function is let through, and all together are not.
    let (locals, blocks) = (" i32".repeat(90), "block end ".repeat(20_000));
    let function = format!("(func (local{locals}) {blocks})");
    let module = format!("(core module {})", function.repeat(17));
    assert_eq!(exceeded(&component(&module)), Bound::AllLocalsTimesBlocks);
}

#[test]
fn blocks_and_branches_of_a_function_are_bounded() {
    let function = |body: &str| component(&format!("(core module (func {body}))"));
    assert_eq!(
        exceeded(&function(&"block end ".repeat(30_001))),
        Bound::Blocks
    );
    let nested = "block ".repeat(5_001) + &"end ".repeat(5_001);
    assert_eq!(exceeded(&function(&nested)), Bound::BlockDepth);
    assert_eq!(
        exceeded(&function(&"loop end ".repeat(2_001))),
        Bound::Loops
    );
    let nested = "loop block ".repeat(65) + &"end end ".repeat(65);
    assert_eq!(exceeded(&function(&nested)), Bound::LoopDepth);
    let table = format!("block i32.const 0 br_table {} end", "0 ".repeat(65_538));
    assert_eq!(exceeded(&function(&table)), Bound::BranchTargets);
    let long = "nop ".repeat(2 << 20);
    assert_eq!(exceeded(&function(&long)), Bound::FunctionBytes);
}

#[test]
fn types_of_functions_are_bounded() {
    let module = |ty: &str| component(&format!("(core module (type (func {ty})))"));
    let many = |what, count| format!("({what}{})", " i32".repeat(count));
    assert_eq!(exceeded(&module(&many("param", 257))), Bound::Parameters);
    assert_eq!(exceeded(&module(&many("result", 17))), Bound::Results);
}

#[test]
fn components_that_instantiate_each_other_twice_are_counted_by_what_comes_of_it() {
    let mut text = "(component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
    for level in 1..=30 {
        let below = level - 1;
        write!(
            text,
            "(component $c{level}
               (alias outer 1 $c{below} (component $below))
               (instance (instantiate $below)) (instance (instantiate $below)))"
        )
        .unwrap();
    }
    text.push_str("(instance (instantiate $c30))");
    assert_eq!(exceeded(&component(&text)), Bound::Instances);
}

#[test]
fn a_component_may_not_import_what_it_instantiates() {
    assert_eq!(
        exceeded(&component(r#"(import "x" (component))"#)),
        Bound::ComponentImports
    );
    let within = r#"(import "x" (instance (export "y" (component))))"#;
    assert_eq!(exceeded(&component(within)), Bound::ComponentImports);
}

#[test]
fn types_that_mention_each_other_twice_are_counted_by_what_comes_of_it() {
    let doubled = |levels: usize| {
        let mut text = "(type $t0 (tuple u8 u8))".to_owned();
        for level in 1..=levels {
            let below = level - 1;
            write!(text, "(type $t{level} (tuple $t{below} $t{below}))").unwrap();
        }
        component(&text)
    };
    assert_eq!(exceeded(&doubled(15)), Bound::TypeSize);
    // wasmparser has a bound of its own for what is larger still.
    assert!(matches!(
        check(&doubled(40)),
        Err(BoundsError::Malformed(_))
    ));
    assert_eq!(check(&doubled(10)), Ok(()));
    let list = |count| component(&"(type (tuple u8 u8 u8 u8))".repeat(count));
    assert_eq!(exceeded(&list(20_001)), Bound::Types);
}

#[test]
fn parts_and_types_within_each_other_are_bounded() {
    let nested = "(component ".repeat(16) + &")".repeat(16);
    assert_eq!(exceeded(&component(&nested)), Bound::Depth);
    assert_eq!(
        exceeded(&component(&"(core module)".repeat(256))),
        Bound::Parts
    );
    // By hand, since no tool writes it: a type section with instance types of one type each, a
    // hundred thousand deep, which a reader follows by recursion.
    let levels = [0x42, 1, 1].repeat(100_000);
    let size = u32::try_from(levels.len() + 1).unwrap();
    let mut wasm = b"\0asm\x0d\0\x01\0\x07".to_vec();
    wasm.extend((0..5).map(|at| {
        let more = if at < 4 { 0x80 } else { 0 };
        u8::try_from((size >> (7 * at)) & 0x7f).unwrap() | more
    }));
    wasm.push(1);
    wasm.extend(levels);
    assert_eq!(exceeded(&wasm), Bound::TypeNesting);
    assert_eq!(exceeded(&type_chain(110)), Bound::TypeDepth);
}

/// wasmparser 0.254 and wasmtime 48 fail an assertion over it.
#[tokio::test]
async fn a_panic_of_the_compiler_is_an_error_of_the_plugin() {
    let wasm = type_chain(200);
    let refused = PolicyPlugin::load(&engine(), "bad", &wasm, &PluginLimits::default()).await;
    assert!(matches!(refused, Err(LoadError::Interrupted { .. })));
}

#[test]
fn memories_tables_and_segments_are_bounded() {
    let module = |text: &str| component(&format!("(core module {text})"));
    assert_eq!(exceeded(&module("(memory 16385)")), Bound::MemoryBytes);
    assert_eq!(
        exceeded(&module("(table 100001 funcref)")),
        Bound::TableElements
    );
    assert_eq!(exceeded(&module(&"(memory 1)".repeat(33))), Bound::Memories);
    assert_eq!(
        exceeded(&module(&"(table 1 funcref)".repeat(33))),
        Bound::Tables
    );
    let data = format!("(memory 1) {}", "(data)".repeat(50_001));
    assert_eq!(exceeded(&module(&data)), Bound::Segments);
    let elements = format!("(func) (elem func {})", "0 ".repeat(200_001));
    assert_eq!(exceeded(&module(&elements)), Bound::SegmentElements);
    assert_eq!(
        exceeded(&module(&"(global i32 i32.const 0)".repeat(10_001))),
        Bound::Globals
    );
    assert_eq!(
        exceeded(&module(&"(func)".repeat(100_001))),
        Bound::Functions
    );
}

#[test]
fn no_prefix_of_a_component_is_a_panic() {
    let wasm = many_locals(3, 3);
    for end in 0..wasm.len() {
        let _ = check(&wasm[..end]);
    }
    assert_eq!(check(&wasm), Ok(()));
}

/// What the engine compiles, so that most of what is made gets as far as that.
fn config() -> wasm_smith::Config {
    wasm_smith::Config {
        exceptions_enabled: false,
        gc_enabled: false,
        // Without a collector the engine takes none but those of functions.
        reference_types_enabled: false,
        relaxed_simd_enabled: false,
        threads_enabled: false,
        ..wasm_smith::Config::default()
    }
}

proptest! {
    // Compiling is most of it, so there are few cases; the same ones each time, since this is a gate.
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(13),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_component_is_admitted_or_refused_within_the_bounds(
        seed in proptest::collection::vec(any::<u8>(), 64..2_048),
        damage in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
    ) {
        let mut source = Unstructured::new(&seed);
        let generated = wasm_smith::Component::new(config(), &mut source);
        prop_assume!(generated.is_ok());
        let mut wasm = generated.unwrap().to_bytes();
        if let Some((at, byte)) = damage {
            let at = at.index(wasm.len());
            wasm[at] = byte;
        }
        let mut scan = Scan::new();
        let passed = scan.run(&wasm);
        if passed.is_ok() {
            for bound in Bound::ALL {
                prop_assert!(scan.figures.of(*bound) <= bound.limit());
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let loaded = runtime.block_on(PolicyPlugin::load(
            &engine(),
            "any",
            &wasm,
            &PluginLimits::default(),
        ));
        // None of them is a policy.
        let refused = loaded.unwrap_err();
        let as_expected = match passed {
            Err(BoundsError::Exceeded { .. }) => matches!(refused, LoadError::TooComplex { .. }),
            Err(BoundsError::Malformed(_)) => matches!(refused, LoadError::NotAComponent { .. }),
            Ok(()) => !matches!(refused, LoadError::Interrupted { .. }),
        };
        prop_assert!(as_expected, "{refused}");
    }
}

/// A number as the sections of a component have it.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(number & 0x7f).unwrap();
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A component with one core module and nothing else.
fn around(module: &[u8]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0\x01", &leb128(module.len())[..], module].concat()
}

/// The components of wasm-smith are mostly types and aliases; in these there is code to compile.
#[test]
fn any_module_within_the_bounds_is_compiled_or_refused() {
    let limits = wasm_smith::Config {
        min_types: 4,
        min_funcs: 4,
        max_funcs: 40,
        max_instructions: 400,
        // Most would be refused otherwise: for imports of one name, or for their size.
        max_imports: 0,
        memory64_enabled: false,
        max_memory32_bytes: 1 << 20,
        max_table_elements: 1_000,
        ..config()
    };
    let engine = engine();
    let (compiled, functions) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(13),
        ..ProptestConfig::default()
    });
    let seeds = proptest::collection::vec(any::<u8>(), 4_096..16_384);
    let outcome = runner.run(&seeds, |seed| {
        let generated = wasm_smith::Module::new(limits.clone(), &mut Unstructured::new(&seed));
        prop_assume!(generated.is_ok());
        let wasm = around(&generated.unwrap().to_bytes());
        let mut scan = Scan::new();
        let passed = scan.run(&wasm);
        match engine.compile("any", &wasm) {
            Ok(_) => {
                prop_assert_eq!(passed, Ok(()));
                compiled.set(compiled.get() + 1);
                functions.set(functions.get() + scan.figures.of(Bound::Functions));
            }
            Err(error) => prop_assert!(matches!(error, CompileError::Refused(_)), "{}", error),
        }
        Ok(())
    });
    outcome.unwrap();
    let (compiled, functions) = (compiled.get(), functions.get());
    assert!(
        compiled >= 30 && functions >= 100,
        "{compiled} with {functions} functions"
    );
}

proptest! {
    // Reading alone is quick.
    #[test]
    fn a_mutated_guest_is_read_within_the_bounds(wasm in mutated(released())) {
        let mut scan = Scan::new();
        if scan.run(&wasm).is_ok() {
            for bound in Bound::ALL {
                prop_assert!(scan.figures.of(*bound) <= bound.limit());
            }
        }
    }
}

/// Guests as they were released.
fn released() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../wit/released/0.1.0");
    ["git", "llm", "policy", "tools"]
        .map(|guest| std::fs::read(format!("{folder}/{guest}.wasm")).unwrap())
        .to_vec()
}
