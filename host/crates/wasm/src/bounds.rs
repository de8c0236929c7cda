//! The bounds of a component: how large and how deep it may be for a compiler to be let near it.
//!
//! A compiler's work does not grow with the bytes it reads alone. A function of 230 KB with 49,000
//! locals and 1,000 loops takes more than a minute and 2 GB, because each loop carries each local; one
//! of 42 KB with 5,000 loops in each other takes two minutes; a component of 2 KB whose parts instantiate
//! each other twice, thirty levels deep, is inlined into a billion instances; the last of twenty types,
//! each of which mentions the one before it twice, has a million leaves. [`check`] reads the bytes once, in
//! time that grows with their number, and refuses what is far beyond anything a toolchain makes.
//!
//! What is bounded, and the largest figures found in guests: Rust (this repository's and
//! `wit/released`), JavaScript (12 MB, with SpiderMonkey) and Python (19 MB, with CPython). Checking
//! the largest takes 0.1 s, less than a hundredth of compiling it.
//!
//! | figure | bound | Rust | JavaScript | Python |
//! | --- | --- | --- | --- | --- |
//! | modules and components, itself included | 256 | 5 | 6 | 17 |
//! | nesting of those | 16 | 2 | 2 | 2 |
//! | instances, estimated | 1,024 | 8 | 29 | 68 |
//! | types | 20,000 | 210 | 419 | 1,580 |
//! | nesting of declarations; of references | 100; 100 | 1; 15 | 1; 15 | 2; 15 |
//! | nodes of one type, references followed | 20,000 | 1,258 | 1,258 | 1,351 |
//! | nodes of all types | 500,000 | 11,361 | 12,941 | 22,504 |
//! | parameters; results of one function | 256; 16 | 13; 1 | 17; 1 | 18; 1 |
//! | imports; exports and aliases | 20,000; 50,000 | 57; 95 | 145; 206 | 2,349; 5,616 |
//! | functions | 100,000 | 937 | 12,763 | 13,482 |
//! | bytes of one function | 2 MiB | 17,928 | 171,628 | 426,843 |
//! | locals of one function | 5,000 | 64 | 118 | 271 |
//! | blocks of one function; nesting | 30,000; 5,000 | 224; 71 | 4,216; 456 | 3,112; 781 |
//! | loops of one function; nesting | 2,000; 64 | 28; 5 | 392; 6 | 81; 6 |
//! | branch targets of one function | 65,536 | 62 | 863 | 15,805 |
//! | locals × blocks of one function | 2,000,000 | 9,792 | 194,228 | 67,479 |
//! | locals × blocks of all functions | 30,000,000 | 67,439 | 2,852,707 | 1,417,250 |
//! | globals; tables; memories | 10,000; 32; 32 | 3; 2; 1 | 4; 2; 1 | 874; 2; 1 |
//! | initial elements of a table; bytes of a memory | 100,000; 1 GiB | 120; 1 MiB | 7,689; 9 MiB | 5,672; 13 MiB |
//! | segments; elements in them | 50,000; 200,000 | 3; 120 | 10,002; 7,714 | 2,181; 5,758 |
//!
//! # Invariants
//! - A component that passes has every figure within its bound, in all of its nested parts.
//! - It is no promise that compiling is cheap, or that wasmparser, which reads the types here, has no
//!   fault of its own: what is not foreseen ends with the compiling [process](crate::Compiler::Child),
//!   where all of this runs.

use std::collections::HashMap;

use wasmparser::component_types::{
    ComponentAnyTypeId, ComponentDefinedType, ComponentEntityType, ComponentValType,
};
use wasmparser::types::TypesRef;
use wasmparser::{
    ComponentInstance, ComponentType, ComponentTypeDeclaration, ComponentTypeRef,
    CompositeInnerType, CoreType, ElementItems, Encoding, FunctionBody, InstanceTypeDeclaration,
    Operator, Parser, Payload, RecGroup, SectionLimited, Validator, WasmFeatures,
};

/// Declares the bounds: a figure, its limit, and what it counts, as it reads after a number.
macro_rules! bounds {
    ($($(#[$doc:meta])* $name:ident = $limit:expr, $counts:literal;)*) => {
        /// A figure of a component that has a limit.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum Bound {
            $($(#[$doc])* $name,)*
        }

        impl Bound {
            /// All of them.
            const ALL: &[Self] = &[$(Self::$name),*];

            /// The largest value that is let through.
            pub fn limit(self) -> u64 {
                match self {
                    $(Self::$name => $limit,)*
                }
            }

            /// What is counted, in the plural.
            fn counts(self) -> &'static str {
                match self {
                    $(Self::$name => $counts,)*
                }
            }
        }
    };
}

bounds! {
    /// Modules and components in the component, itself included.
    Parts = 256, "modules and components";
    /// How deep modules and components are nested.
    Depth = 16, "levels of modules and components in each other";
    /// Instances of modules and components that instantiating it makes, estimated from above.
    Instances = 1_024, "instances of modules and components";
    /// Imports and type declarations whose type is a component, which would let an instance be made of
    /// something that is not known yet.
    ComponentImports = 0, "imports of components";
    /// Types of modules and components, those inside of others included.
    Types = 20_000, "types";
    /// How deep the declaration of a type holds others.
    TypeNesting = 100, "levels of declarations in one type";
    /// How many references lead from a type to its innermost one.
    TypeDepth = 100, "levels of references in one type";
    /// Nodes of one type whose references are followed.
    TypeSize = 20_000, "nodes in one type";
    /// The same of all types, functions and instances together.
    AllTypeSizes = 500_000, "nodes in all types";
    /// Parameters of a function of a module.
    Parameters = 256, "parameters in one function type";
    /// Results of a function or block of a module.
    Results = 16, "results in one function type";
    /// Imports of all modules and components.
    Imports = 20_000, "imports";
    /// Exports of all modules and components, and aliases.
    Exports = 50_000, "exports and aliases";
    /// Functions of all modules and components.
    Functions = 100_000, "functions";
    /// The size of a function's body in bytes.
    FunctionBytes = 2 << 20, "bytes in one function";
    /// Locals of a function.
    Locals = 5_000, "locals in one function";
    /// Blocks, loops and conditionals of a function.
    Blocks = 30_000, "blocks in one function";
    /// How deep they are nested.
    BlockDepth = 5_000, "levels of blocks in one function";
    /// Loops of a function.
    Loops = 2_000, "loops in one function";
    /// How deep loops are nested.
    LoopDepth = 64, "levels of loops in one function";
    /// Targets of all branch tables of a function.
    BranchTargets = 65_536, "branch targets in one function";
    /// Locals times blocks of a function: what a compiler may have to carry from block to block.
    LocalsTimesBlocks = 2_000_000, "locals times blocks in one function";
    /// The same of all functions together.
    AllLocalsTimesBlocks = 30_000_000, "locals times blocks in all functions";
    /// Globals and tags of all modules.
    Globals = 10_000, "globals and tags";
    /// Tables of all modules.
    Tables = 32, "tables";
    /// The initial size of a table.
    TableElements = 100_000, "elements in one table at the start";
    /// Memories of all modules.
    Memories = 32, "memories";
    /// The initial size of a memory in bytes.
    MemoryBytes = 1 << 30, "bytes in one memory at the start";
    /// Segments that initialise memories and tables.
    Segments = 50_000, "data and element segments";
    /// Elements of all segments of tables.
    SegmentElements = 200_000, "elements in segments";
}

/// A component that is refused before it is compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
pub enum BoundsError {
    /// The bytes are not WebAssembly.
    #[error("{0}")]
    Malformed(String),
    /// A figure is above its limit.
    #[error("{found} {}, and at most {} are compiled", .bound.counts(), .bound.limit())]
    Exceeded {
        /// The figure.
        bound: Bound,
        /// Its value, or the value at which counting ended.
        found: u64,
    },
}

impl From<wasmparser::Error> for BoundsError {
    fn from(error: wasmparser::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Checks a component's figures, without compiling anything.
///
/// # Errors
/// The first figure above its limit, or that the bytes are not WebAssembly.
pub(crate) fn check(wasm: &[u8]) -> Result<(), BoundsError> {
    Scan::new().run(wasm)
}

/// The largest value of each figure so far.
#[derive(Debug, Default)]
struct Figures([u64; Bound::ALL.len()]);

impl Figures {
    fn of(&self, bound: Bound) -> u64 {
        self.0[bound as usize]
    }

    /// Notes a figure of one thing.
    fn note(&mut self, bound: Bound, found: u64) -> Result<(), BoundsError> {
        let largest = &mut self.0[bound as usize];
        *largest = found.max(*largest);
        if found > bound.limit() {
            return Err(BoundsError::Exceeded { bound, found });
        }
        Ok(())
    }

    /// Adds to a figure of all things together.
    fn add(&mut self, bound: Bound, more: u64) -> Result<(), BoundsError> {
        let total = self.of(bound).saturating_add(more);
        self.note(bound, total)
    }
}

/// A module or component that has begun and not ended.
#[derive(Default)]
struct Part {
    is_component: bool,
    /// Instances made of modules or of exports.
    simple_instances: u64,
    /// Instances made of components.
    component_instances: u64,
    /// The entries of its index spaces that were weighed.
    types: u32,
    functions: u32,
    instances: u32,
}

/// The state of one check.
struct Scan {
    figures: Figures,
    validator: Validator,
    /// The open parts, the innermost last.
    parts: Vec<Part>,
    /// The most instances that one of the components so far makes. A component can instantiate only
    /// those that ended before, since none is imported.
    most_instances: u64,
    weights: Weights,
}

impl Scan {
    fn new() -> Self {
        Self {
            figures: Figures::default(),
            validator: Validator::new_with_features(
                WasmFeatures::WASM3 | WasmFeatures::COMPONENT_MODEL,
            ),
            parts: Vec::new(),
            most_instances: 0,
            weights: Weights::default(),
        }
    }

    fn run(&mut self, wasm: &[u8]) -> Result<(), BoundsError> {
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload?;
            // Before anything reads what is inside.
            self.count(wasm, &payload)?;
            self.validator.payload(&payload)?;
            self.weigh_new()?;
        }
        Ok(())
    }

    fn part(&mut self) -> Result<&mut Part, BoundsError> {
        let outside = || BoundsError::Malformed("a section outside of a module".to_owned());
        self.parts.last_mut().ok_or_else(outside)
    }

    fn count(&mut self, wasm: &[u8], payload: &Payload<'_>) -> Result<(), BoundsError> {
        let figures = &mut self.figures;
        match payload {
            Payload::Version { encoding, .. } => {
                self.parts.push(Part {
                    is_component: *encoding == Encoding::Component,
                    ..Part::default()
                });
                figures.add(Bound::Parts, 1)?;
                figures.note(Bound::Depth, self.parts.len() as u64)
            }
            Payload::End(_) => self.end(),
            Payload::TypeSection(section) => section
                .clone()
                .into_iter()
                .try_for_each(|group| recursion_group(figures, &group?)),
            Payload::ImportSection(section) => figures.add(Bound::Imports, section.count().into()),
            Payload::FunctionSection(section) => {
                figures.add(Bound::Functions, section.count().into())
            }
            Payload::GlobalSection(section) => figures.add(Bound::Globals, section.count().into()),
            Payload::TagSection(section) => figures.add(Bound::Globals, section.count().into()),
            Payload::ExportSection(section) => figures.add(Bound::Exports, section.count().into()),
            Payload::DataSection(section) => figures.add(Bound::Segments, section.count().into()),
            Payload::TableSection(section) => {
                figures.add(Bound::Tables, section.count().into())?;
                let mut tables = section.clone().into_iter();
                tables.try_for_each(|table| figures.note(Bound::TableElements, table?.ty.initial))
            }
            Payload::MemorySection(section) => {
                figures.add(Bound::Memories, section.count().into())?;
                section.clone().into_iter().try_for_each(|memory| {
                    let memory = memory?;
                    let page = 1 << memory.page_size_log2.unwrap_or(16).min(16);
                    figures.note(Bound::MemoryBytes, memory.initial.saturating_mul(page))
                })
            }
            Payload::ElementSection(section) => {
                figures.add(Bound::Segments, section.count().into())?;
                section.clone().into_iter().try_for_each(|segment| {
                    let items = match segment?.items {
                        ElementItems::Functions(items) => items.count(),
                        ElementItems::Expressions(_, items) => items.count(),
                    };
                    figures.add(Bound::SegmentElements, items.into())
                })
            }
            Payload::CodeSectionEntry(body) => function(figures, body),
            Payload::InstanceSection(section) => {
                self.part()?.simple_instances += u64::from(section.count());
                Ok(())
            }
            Payload::ComponentInstanceSection(section) => self.component_instances(section),
            Payload::CoreTypeSection(section) => section
                .clone()
                .into_iter()
                .try_for_each(|ty| core_type(figures, &ty?)),
            Payload::ComponentTypeSection(section) => {
                let bytes = wasm.get(section.range()).unwrap_or_default();
                figures.note(Bound::TypeNesting, type_nesting(bytes))?;
                section
                    .clone()
                    .into_iter()
                    .try_for_each(|ty| component_type(figures, &ty?))
            }
            Payload::ComponentAliasSection(section) => {
                figures.add(Bound::Exports, section.count().into())
            }
            Payload::ComponentCanonicalSection(section) => {
                figures.add(Bound::Functions, section.count().into())
            }
            Payload::ComponentImportSection(section) => {
                figures.add(Bound::Imports, section.count().into())?;
                let mut imports = section.clone().into_iter();
                imports.try_for_each(|import| reference(figures, &import?.ty))
            }
            Payload::ComponentExportSection(section) => {
                figures.add(Bound::Exports, section.count().into())
            }
            _ => Ok(()),
        }
    }

    fn component_instances(
        &mut self,
        section: &SectionLimited<'_, ComponentInstance<'_>>,
    ) -> Result<(), BoundsError> {
        let part = self.part()?;
        for instance in section.clone() {
            match instance? {
                ComponentInstance::Instantiate { .. } => part.component_instances += 1,
                ComponentInstance::FromExports(_) => part.simple_instances += 1,
            }
        }
        Ok(())
    }

    /// A module or component ends.
    fn end(&mut self) -> Result<(), BoundsError> {
        let Some(part) = self.parts.pop().filter(|part| part.is_component) else {
            return Ok(());
        };
        let nested = part.component_instances.saturating_mul(self.most_instances);
        let all = nested.saturating_add(part.simple_instances + 1);
        self.most_instances = self.most_instances.max(all);
        self.figures.note(Bound::Instances, all)
    }

    /// Weighs the types of what was added to the index spaces of the innermost component.
    fn weigh_new(&mut self) -> Result<(), BoundsError> {
        let part = self.parts.last_mut().filter(|part| part.is_component);
        let (Some(part), Some(types)) = (part, self.validator.types(0)) else {
            return Ok(());
        };
        let new_types = part.types..types.component_type_count();
        let new_functions = part.functions..types.component_function_count();
        let new_instances = part.instances..types.component_instance_count();
        part.types = new_types.end;
        part.functions = new_functions.end;
        part.instances = new_instances.end;
        let all = new_types
            .map(|index| types.component_any_type_at(index))
            .chain(new_functions.map(|index| types.component_function_at(index).into()))
            .chain(new_instances.map(|index| types.component_instance_at(index).into()));
        for id in all {
            let weight = self.weights.of(types, id, 0)?;
            self.figures.note(Bound::TypeDepth, weight.depth)?;
            self.figures.note(Bound::TypeSize, weight.nodes)?;
            self.figures.add(Bound::AllTypeSizes, weight.nodes)?;
        }
        Ok(())
    }
}

/// How many declarations of types at most hold each other. wasmparser reads them by recursion, so this
/// is known before it does: each level but the outermost is the tag of a type's declaration and the
/// tag of a component's or an instance's type.
fn type_nesting(section: &[u8]) -> u64 {
    let levels = section.array_windows();
    levels
        .filter(|pair| matches!(pair, [0x01, 0x41 | 0x42]))
        .count() as u64
}

fn recursion_group(figures: &mut Figures, group: &RecGroup) -> Result<(), BoundsError> {
    for ty in group.types() {
        figures.add(Bound::Types, 1)?;
        if let CompositeInnerType::Func(ty) = &ty.composite_type.inner {
            figures.note(Bound::Parameters, ty.params().len() as u64)?;
            figures.note(Bound::Results, ty.results().len() as u64)?;
        }
    }
    Ok(())
}

fn core_type(figures: &mut Figures, ty: &CoreType<'_>) -> Result<(), BoundsError> {
    match ty {
        CoreType::Rec(group) => recursion_group(figures, group),
        CoreType::Module(declarations) => figures.add(Bound::Types, 1 + declarations.len() as u64),
    }
}

fn component_type(figures: &mut Figures, ty: &ComponentType<'_>) -> Result<(), BoundsError> {
    figures.add(Bound::Types, 1)?;
    match ty {
        ComponentType::Component(declarations) => {
            declarations
                .iter()
                .try_for_each(|declaration| match declaration {
                    ComponentTypeDeclaration::CoreType(ty) => core_type(figures, ty),
                    ComponentTypeDeclaration::Type(ty) => component_type(figures, ty),
                    ComponentTypeDeclaration::Alias(_) => Ok(()),
                    ComponentTypeDeclaration::Export { ty, .. } => reference(figures, ty),
                    ComponentTypeDeclaration::Import(import) => reference(figures, &import.ty),
                })
        }
        ComponentType::Instance(declarations) => {
            declarations
                .iter()
                .try_for_each(|declaration| match declaration {
                    InstanceTypeDeclaration::CoreType(ty) => core_type(figures, ty),
                    InstanceTypeDeclaration::Type(ty) => component_type(figures, ty),
                    InstanceTypeDeclaration::Alias(_) => Ok(()),
                    InstanceTypeDeclaration::Export { ty, .. } => reference(figures, ty),
                })
        }
        ComponentType::Defined(_) | ComponentType::Func(_) | ComponentType::Resource { .. } => {
            Ok(())
        }
    }
}

/// What an import or a declaration refers to.
fn reference(figures: &mut Figures, ty: &ComponentTypeRef) -> Result<(), BoundsError> {
    match ty {
        ComponentTypeRef::Component(_) => figures.add(Bound::ComponentImports, 1),
        _ => Ok(()),
    }
}

fn function(figures: &mut Figures, body: &FunctionBody<'_>) -> Result<(), BoundsError> {
    let range = body.range();
    figures.note(Bound::FunctionBytes, (range.end - range.start) as u64)?;
    let mut locals = 0;
    for group in body.get_locals_reader()? {
        locals += u64::from(group?.0);
    }
    figures.note(Bound::Locals, locals)?;
    let mut nesting = Nesting::default();
    let mut targets = 0;
    let mut operators = body.get_operators_reader()?;
    while !operators.eof() {
        match operators.read()? {
            Operator::Loop { .. } => nesting.begin(true),
            Operator::Block { .. }
            | Operator::If { .. }
            | Operator::Try { .. }
            | Operator::TryTable { .. } => nesting.begin(false),
            Operator::End | Operator::Delegate { .. } => nesting.end(),
            Operator::BrTable { targets: table } => targets += u64::from(table.len()),
            _ => {}
        }
    }
    figures.note(Bound::Blocks, nesting.blocks)?;
    figures.note(Bound::BlockDepth, nesting.deepest_block)?;
    figures.note(Bound::Loops, nesting.loops)?;
    figures.note(Bound::LoopDepth, nesting.deepest_loop)?;
    figures.note(Bound::BranchTargets, targets)?;
    let carried = locals.saturating_mul(nesting.blocks);
    figures.note(Bound::LocalsTimesBlocks, carried)?;
    figures.add(Bound::AllLocalsTimesBlocks, carried)
}

/// The blocks of a function, which may be loops.
#[derive(Default)]
struct Nesting {
    /// Whether each of the open ones is a loop, the innermost last.
    open: Vec<bool>,
    open_loops: u64,
    blocks: u64,
    loops: u64,
    deepest_block: u64,
    deepest_loop: u64,
}

impl Nesting {
    fn begin(&mut self, is_loop: bool) {
        self.open.push(is_loop);
        self.blocks += 1;
        self.deepest_block = self.deepest_block.max(self.open.len() as u64);
        if is_loop {
            self.loops += 1;
            self.open_loops += 1;
            self.deepest_loop = self.deepest_loop.max(self.open_loops);
        }
    }

    /// Ends a block, or the function.
    fn end(&mut self) {
        if self.open.pop() == Some(true) {
            self.open_loops -= 1;
        }
    }
}

/// The size of a type whose references are followed.
#[derive(Debug, Clone, Copy)]
struct Weight {
    nodes: u64,
    /// How many references lead to its innermost type.
    depth: u64,
}

impl Weight {
    const LEAF: Self = Self { nodes: 1, depth: 0 };
}

/// The weights of types, each of which is computed once.
#[derive(Default)]
struct Weights(HashMap<ComponentAnyTypeId, Weight>);

impl Weights {
    /// The weight of a type that so many references led to.
    fn of(
        &mut self,
        types: TypesRef<'_>,
        id: ComponentAnyTypeId,
        above: u64,
    ) -> Result<Weight, BoundsError> {
        if let Some(known) = self.0.get(&id) {
            return Ok(*known);
        }
        if above > Bound::TypeDepth.limit() {
            return Err(BoundsError::Exceeded {
                bound: Bound::TypeDepth,
                found: above,
            });
        }
        let mut weight = Weight::LEAF;
        let mut add = |part: Result<Weight, BoundsError>| {
            let part = part?;
            weight.nodes = weight.nodes.saturating_add(part.nodes);
            weight.depth = weight.depth.max(part.depth + 1);
            Ok::<_, BoundsError>(())
        };
        match id {
            ComponentAnyTypeId::Resource(_) => {}
            ComponentAnyTypeId::Defined(id) => {
                let mut values = values(&types[id]).into_iter();
                values.try_for_each(|value| add(self.value(types, value, above)))?;
            }
            ComponentAnyTypeId::Func(id) => {
                let function = &types[id];
                let values = function.params.iter().map(|(_, value)| value);
                let mut values = values.chain(&function.result);
                values.try_for_each(|value| add(self.value(types, *value, above)))?;
            }
            ComponentAnyTypeId::Instance(id) => {
                let mut items = types[id].exports.values();
                items.try_for_each(|item| add(self.entity(types, &item.ty, above)))?;
            }
            ComponentAnyTypeId::Component(id) => {
                let component = &types[id];
                let mut items = component.imports.values().chain(component.exports.values());
                items.try_for_each(|item| add(self.entity(types, &item.ty, above)))?;
            }
        }
        self.0.insert(id, weight);
        Ok(weight)
    }

    fn value(
        &mut self,
        types: TypesRef<'_>,
        value: ComponentValType,
        above: u64,
    ) -> Result<Weight, BoundsError> {
        match value {
            ComponentValType::Primitive(_) => Ok(Weight::LEAF),
            ComponentValType::Type(id) => self.of(types, id.into(), above + 1),
        }
    }

    fn entity(
        &mut self,
        types: TypesRef<'_>,
        entity: &ComponentEntityType,
        above: u64,
    ) -> Result<Weight, BoundsError> {
        let id = match *entity {
            ComponentEntityType::Value(value) => return self.value(types, value, above),
            ComponentEntityType::Module(id) => {
                let module = &types[id];
                return Ok(Weight {
                    nodes: 1 + (module.imports.len() + module.exports.len()) as u64,
                    depth: 1,
                });
            }
            ComponentEntityType::Func(id) => id.into(),
            ComponentEntityType::Type { created, .. } => created,
            ComponentEntityType::Instance(id) => id.into(),
            ComponentEntityType::Component(id) => id.into(),
        };
        self.of(types, id, above + 1)
    }
}

/// The types that a defined type is made of. A name without a type counts as a primitive one.
fn values(ty: &ComponentDefinedType) -> Vec<ComponentValType> {
    let name = ComponentValType::Primitive(wasmparser::PrimitiveValType::Bool);
    match ty {
        ComponentDefinedType::Primitive(_)
        | ComponentDefinedType::Own(_)
        | ComponentDefinedType::Borrow(_) => Vec::new(),
        ComponentDefinedType::Record(record) => record.fields.values().copied().collect(),
        ComponentDefinedType::Variant(variant) => {
            let cases = variant.cases.values();
            cases.map(|case| case.ty.unwrap_or(name)).collect()
        }
        ComponentDefinedType::List { element, .. }
        | ComponentDefinedType::FixedLengthList { element, .. } => vec![*element],
        ComponentDefinedType::Map { key, value, .. } => vec![*key, *value],
        ComponentDefinedType::Tuple(tuple) => tuple.types.to_vec(),
        ComponentDefinedType::Flags(names) | ComponentDefinedType::Enum(names) => {
            vec![name; names.len()]
        }
        ComponentDefinedType::Option { ty, .. } => vec![*ty],
        ComponentDefinedType::Result { ok, err, .. } => ok.iter().chain(err).copied().collect(),
        ComponentDefinedType::Future { ty, .. } | ComponentDefinedType::Stream { ty, .. } => {
            ty.iter().copied().collect()
        }
    }
}

#[cfg(test)]
mod tests;
