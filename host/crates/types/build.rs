//! Writes the types of the WIT packages as Rust, so that no crate needs wasmtime to name them. With the
//! feature `component` they derive what wasmtime needs to pass them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use wit_parser::{
    Case, Docs, EnumCase, Field, Interface, InterfaceId, Resolve, Type, TypeDef, TypeDefKind,
    TypeId, TypeOwner,
};

type Error = Box<dyn std::error::Error>;

/// The interfaces, each with its module, in an order in which each uses only earlier packages.
const INTERFACES: [(&str, &str, &str); 6] = [
    ("types", "types", "types"),
    ("host", "log", "log"),
    ("policy", "policy", "policy"),
    ("llm", "provider", "llm"),
    ("tools", "tools", "tools"),
    ("git", "provider", "git"),
];

fn main() -> Result<(), Error> {
    let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../wit");
    println!("cargo::rerun-if-changed=build.rs");
    let mut resolve = Resolve::new();
    let mut code = String::new();
    for (package, interface, module) in INTERFACES {
        let folder = wit.join(package);
        println!("cargo::rerun-if-changed={}", folder.display());
        let (id, _) = resolve.push_dir(&folder)?;
        let id = resolve.packages[id].interfaces[interface];
        let generator = Generator {
            resolve: &resolve,
            interface: id,
        };
        generator.module(&mut code, module)?;
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("wit.rs"), code)?;
    Ok(())
}

struct Generator<'a> {
    resolve: &'a Resolve,
    interface: InterfaceId,
}

impl Generator<'_> {
    fn module(&self, code: &mut String, module: &str) -> Result<(), Error> {
        let interface: &Interface = &self.resolve.interfaces[self.interface];
        docs(code, &interface.docs);
        writeln!(code, "pub mod {module} {{")?;
        for (name, id) in &interface.types {
            self.define(code, name, &self.resolve.types[*id])?;
        }
        writeln!(code, "}}")?;
        Ok(())
    }

    fn define(&self, code: &mut String, name: &str, ty: &TypeDef) -> Result<(), Error> {
        let name = camel(name);
        let copy = self.is_copy_kind(&ty.kind);
        match &ty.kind {
            // What an interface takes from another one is named where it is used, by its own path.
            TypeDefKind::Type(Type::Id(_)) | TypeDefKind::Resource => {}
            TypeDefKind::Record(record) => {
                docs(code, &ty.docs);
                derives(code, "record", copy);
                writeln!(code, "pub struct {name} {{")?;
                for Field {
                    name,
                    ty,
                    docs: text,
                    ..
                } in &record.fields
                {
                    docs(code, text);
                    named(code, name);
                    writeln!(code, "pub {}: {},", snake(name), self.ty(ty))?;
                }
                writeln!(code, "}}")?;
            }
            TypeDefKind::Variant(variant) => {
                docs(code, &ty.docs);
                derives(code, "variant", copy);
                writeln!(code, "pub enum {name} {{")?;
                for Case {
                    name,
                    ty,
                    docs: text,
                    ..
                } in &variant.cases
                {
                    docs(code, text);
                    named(code, name);
                    let payload = ty.as_ref().map(|ty| format!("({})", self.ty(ty)));
                    writeln!(code, "{}{},", camel(name), payload.unwrap_or_default())?;
                }
                writeln!(code, "}}")?;
            }
            TypeDefKind::Enum(cases) => {
                docs(code, &ty.docs);
                derives(code, "enum", true);
                writeln!(code, "#[derive(Eq)] #[repr(u8)]\npub enum {name} {{")?;
                for EnumCase {
                    name, docs: text, ..
                } in &cases.cases
                {
                    docs(code, text);
                    named(code, name);
                    writeln!(code, "{},", camel(name))?;
                }
                writeln!(code, "}}")?;
            }
            _ => {
                docs(code, &ty.docs);
                writeln!(code, "pub type {name} = {};", self.kind(&ty.kind))?;
            }
        }
        Ok(())
    }

    fn ty(&self, ty: &Type) -> String {
        let primitive = match ty {
            Type::Bool => "bool",
            Type::U8 => "u8",
            Type::U16 => "u16",
            Type::U32 => "u32",
            Type::U64 => "u64",
            Type::S8 => "i8",
            Type::S16 => "i16",
            Type::S32 => "i32",
            Type::S64 => "i64",
            Type::F32 => "f32",
            Type::F64 => "f64",
            Type::Char => "char",
            Type::String => "String",
            Type::Id(id) => return self.named_type(*id),
            Type::ErrorContext => panic!("the host has no Rust type for {ty:?}"),
        };
        primitive.to_owned()
    }

    /// A type by its name, in the module that defines it.
    fn named_type(&self, id: TypeId) -> String {
        let ty = &self.resolve.types[id];
        let Some(name) = &ty.name else {
            return self.kind(&ty.kind);
        };
        if let TypeDefKind::Type(Type::Id(original)) = ty.kind {
            return self.named_type(original);
        }
        match ty.owner {
            TypeOwner::Interface(owner) if owner != self.interface => {
                let module = self.resolve.interfaces[owner].name.as_deref();
                format!("super::{}::{}", module.unwrap_or_default(), camel(name))
            }
            _ => camel(name),
        }
    }

    fn kind(&self, kind: &TypeDefKind) -> String {
        let or_unit = |ty: &Option<Type>| ty.as_ref().map_or("()".to_owned(), |ty| self.ty(ty));
        match kind {
            TypeDefKind::Option(ty) => format!("Option<{}>", self.ty(ty)),
            TypeDefKind::List(ty) => format!("Vec<{}>", self.ty(ty)),
            TypeDefKind::Type(ty) => self.ty(ty),
            TypeDefKind::Tuple(tuple) => {
                let types: String = tuple.types.iter().map(|ty| self.ty(ty) + ",").collect();
                format!("({types})")
            }
            TypeDefKind::Result(result) => {
                format!("Result<{}, {}>", or_unit(&result.ok), or_unit(&result.err))
            }
            other => panic!("the host has no Rust type for a WIT {}", other.as_str()),
        }
    }

    fn is_copy(&self, ty: &Type) -> bool {
        match ty {
            Type::String => false,
            Type::Id(id) => self.is_copy_kind(&self.resolve.types[*id].kind),
            _ => true,
        }
    }

    fn is_copy_kind(&self, kind: &TypeDefKind) -> bool {
        match kind {
            TypeDefKind::Record(record) => record.fields.iter().all(|f| self.is_copy(&f.ty)),
            TypeDefKind::Variant(variant) => {
                let mut payloads = variant.cases.iter().filter_map(|case| case.ty.as_ref());
                payloads.all(|ty| self.is_copy(ty))
            }
            TypeDefKind::Tuple(tuple) => tuple.types.iter().all(|ty| self.is_copy(ty)),
            TypeDefKind::Option(ty) | TypeDefKind::Type(ty) => self.is_copy(ty),
            TypeDefKind::Enum(_) => true,
            _ => false,
        }
    }
}

fn derives(code: &mut String, kind: &str, copy: bool) {
    let copy = if copy { ", Copy" } else { "" };
    *code += &format!(
        "#[derive(Debug, Clone{copy}, PartialEq, serde::Serialize, serde::Deserialize)]\n\
         #[cfg_attr(feature = \"component\", derive(wasmtime::component::ComponentType, \
         wasmtime::component::Lift, wasmtime::component::Lower), component({kind}))]\n"
    );
}

fn named(code: &mut String, name: &str) {
    *code += &format!("#[cfg_attr(feature = \"component\", component(name = \"{name}\"))]\n");
}

fn docs(code: &mut String, docs: &Docs) {
    for line in docs.contents.iter().flat_map(|text| text.trim().lines()) {
        *code += &format!("/// {line}\n");
    }
}

/// `tool-call` as `ToolCall`.
fn camel(name: &str) -> String {
    let words = name.split('-').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.collect()
}

/// `media-type` as `media_type`, and a keyword with an underscore after it.
fn snake(name: &str) -> String {
    let name = name.replace('-', "_");
    match name.as_str() {
        "type" | "move" | "match" | "ref" | "use" | "in" | "where" | "final" => name + "_",
        _ => name,
    }
}
