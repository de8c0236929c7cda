//! The active builds as the overrides of a manifest.

use super::{Activation, Activations, UploadStore};
use crate::manifest::{SecondBuild, SecondBuildRole, UploadOverride, UploadOverrides};
use lucid_wasm::PluginKind;

impl UploadStore {
    /// The uploads of a deployment: each plugin's active build, and its second build.
    pub(crate) fn uploads(&self, record: &Activations) -> UploadOverrides {
        let mut uploads = UploadOverrides::default();
        for (kind, name, _) in record.all() {
            self.apply_active(record, kind, name, &mut uploads);
        }
        uploads
    }

    /// Adds a plugin's active build, and its second build, to the uploads.
    pub(crate) fn apply_active(
        &self,
        record: &Activations,
        kind: PluginKind,
        name: &str,
        uploads: &mut UploadOverrides,
    ) {
        let active = record.builds(kind, name).len().checked_sub(1);
        self.apply_build(record, (kind, name), active, uploads);
        if let Some(candidate) = record.candidate(kind, name) {
            let role = SecondBuildRole::Candidate {
                share: candidate.share,
            };
            let upload = Some(self.upload(record, kind, name, &candidate.build));
            uploads.set_second_build(name, Some(SecondBuild { role, upload }));
        }
    }

    /// Adds one of a plugin's builds to the uploads, by its index. The manifest's component is used
    /// if there is none. While it is on probation the previous one stays beside it.
    pub(crate) fn apply_build(
        &self,
        record: &Activations,
        (kind, name): (PluginKind, &str),
        at: Option<usize>,
        uploads: &mut UploadOverrides,
    ) {
        let builds = record.builds(kind, name);
        let build = at.and_then(|at| builds.get(at));
        let upload = |build| self.upload(record, kind, name, build);
        uploads.set(kind, name, build.map(upload));
        if kind != PluginKind::Policy {
            return;
        }
        let before = build.filter(|build| build.probation).map(|_| SecondBuild {
            role: SecondBuildRole::Previous,
            upload: at.and_then(|at| builds.get(at.checked_sub(1)?)).map(upload),
        });
        uploads.set_second_build(name, before);
    }

    /// The upload for one build of a plugin.
    fn upload(
        &self,
        record: &Activations,
        kind: PluginKind,
        name: &str,
        build: &Activation,
    ) -> UploadOverride {
        UploadOverride {
            file: self.file(build.digest),
            digest: build.digest,
            added: record.is_added(kind, name),
            probation: build.probation.then_some(build.at),
        }
    }
}
