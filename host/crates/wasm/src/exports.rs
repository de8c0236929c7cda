//! The functions that a component exports for its kind: found by name when it is admitted, checked for their
//! types when it is loaded and whenever one is called.

use wasmtime::Store;
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentNamedList, Instance, InstancePre, Lift, Lower,
    TypedFunc,
};

use super::host_state::HostState;
use super::kind::PluginKind;

/// The functions of an admitted component.
pub struct ComponentExports {
    pre: InstancePre<HostState>,
    functions: Functions,
}

/// Where each function of a kind is in a component.
pub(super) type Functions = Vec<(&'static str, ComponentExportIndex)>;

/// The first export of a kind that a component lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MissingExport {
    /// The interface: the component may be of another kind.
    #[error("{0}")]
    Interface(&'static str),
    /// A function of the interface.
    #[error("{interface}#{function}")]
    Function {
        /// The interface.
        interface: &'static str,
        /// The name of the function.
        function: &'static str,
    },
}

/// Finds the functions of a kind.
pub(super) fn find(component: &Component, kind: PluginKind) -> Result<Functions, MissingExport> {
    let (interface, names) = kind.exports();
    // Looking an export up would also find another, compatible version of the interface.
    let shape = component.component_type();
    let is_there = shape.get_export(component.engine(), interface).is_some();
    let instance = component.get_export_index(None, interface);
    let instance = instance.filter(|_| is_there);
    let instance = instance.ok_or(MissingExport::Interface(interface))?;
    let find = |name: &'static str| {
        let function = component.get_export_index(Some(&instance), name);
        function.map(|function| (name, function))
    };
    let mut functions = Functions::new();
    for &function in names {
        let found = find(function).ok_or(MissingExport::Function {
            interface,
            function,
        });
        functions.push(found?);
    }
    functions.extend(kind.later_exports().iter().filter_map(|name| find(name)));
    Ok(functions)
}

impl ComponentExports {
    pub(super) fn new(pre: InstancePre<HostState>, functions: Functions) -> Self {
        Self { pre, functions }
    }

    /// The component.
    pub(super) fn component(&self) -> &Component {
        self.pre.component()
    }

    /// Makes a fresh instance.
    pub(super) async fn instantiate(
        &self,
        store: &mut Store<HostState>,
    ) -> wasmtime::Result<InstanceExports<'_>> {
        let instance = self.pre.instantiate_async(store).await?;
        Ok(self.of(instance))
    }

    /// The functions of an instance that [`instantiate`](Self::instantiate) made.
    pub(super) fn of(&self, instance: Instance) -> InstanceExports<'_> {
        InstanceExports {
            functions: &self.functions,
            instance,
        }
    }
}

/// The functions of one instance.
#[derive(Clone, Copy)]
pub struct InstanceExports<'a> {
    functions: &'a Functions,
    pub(super) instance: Instance,
}

impl InstanceExports<'_> {
    /// A function with the types that the host has for it. An error if the component's own are others.
    pub(super) fn function<P, R>(
        &self,
        store: &mut Store<HostState>,
        name: &str,
    ) -> wasmtime::Result<TypedFunc<P, (R,)>>
    where
        P: ComponentNamedList + Lower,
        R: Lift,
    {
        let found = self.functions.iter().find(|(known, _)| *known == name);
        let Some((_, index)) = found else {
            return Err(wasmtime::format_err!(
                "no plugin of this kind has a function `{name}`"
            ));
        };
        self.instance
            .get_typed_func(store, index)
            .map_err(|error| error.context(format!("the function `{name}` has another type")))
    }

    /// Calls a function.
    pub(super) async fn call<P, R>(
        &self,
        store: &mut Store<HostState>,
        name: &str,
        params: P,
    ) -> wasmtime::Result<R>
    where
        P: ComponentNamedList + Lower + Send + Sync,
        R: Lift + Send + Sync + 'static,
    {
        let function = self.function::<P, R>(store, name)?;
        let (result,) = function.call_async(store, params).await?;
        Ok(result)
    }
}
