//! Opening recorded layers while the view is in use, so that an undo can put them back.

use std::sync::Arc;

use super::delta::Delta;
use super::file_check::compare_files;
use super::open::{open_image, open_upper};
use super::reconcile::{HostInodes, Reconciled, reconcile};
use super::{FrozenLayer, ImageLayer, LowerStack, OpenOptions, Result, Union, dir_check};
use crate::state::{LayerId, RecordedLayer, StackPart};

impl Union {
    /// Opens layers as a stack, top first, and returns what was repaired in them. The view does not
    /// change. Layers at the bottom that are in the current stack too are shared with it.
    pub(crate) fn open_recorded(
        &self,
        layers: &[RecordedLayer],
        options: &OpenOptions,
    ) -> Result<(Arc<LowerStack>, Reconciled)> {
        let current = self.lower();
        let images = layers.iter().filter_map(|layer| match layer {
            RecordedLayer::Image(image) => Some(*image),
            RecordedLayer::Upper(_) => None,
        });
        let images: Vec<_> = images.collect();
        let in_stack = self.db.stack()?.into_iter();
        let in_stack = in_stack.filter_map(|layer| match layer.part {
            StackPart::Image(image) => Some(image),
            _ => None,
        });
        let mut is_shared = in_stack.eq(images.iter().copied());
        let base: Vec<Arc<ImageLayer>> = match is_shared {
            true => current.images().to_vec(),
            false => {
                let open = |image| open_image(&self.db, &self.paths, image, options).map(Arc::new);
                images.into_iter().map(open).collect::<Result<_>>()?
            }
        };
        let uppers = layers.iter().filter_map(|layer| match layer {
            RecordedLayer::Upper(layer) => Some(*layer),
            RecordedLayer::Image(_) => None,
        });
        let uppers: Vec<LayerId> = uppers.collect();
        let mut lower = Arc::new(LowerStack::new(base));
        let mut done = Reconciled::default();
        let mut own = current.frozen().iter().rev();
        for id in uppers.into_iter().rev() {
            let same = own.next().filter(|layer| is_shared && layer.id == id);
            if let Some(same) = same {
                lower = Arc::new(LowerStack::over(same.clone(), lower));
                continue;
            }
            is_shared = false;
            let below = lower;
            let mut delta = Delta::from_rows(self.db.load_layer(id)?);
            dir_check::check(&delta, &below)?;
            let upper = open_upper(&self.db, &self.paths, id, &delta)?;
            // The store may have been copied since the layer left the stack. Only if files are at
            // other places, their numbers must tell where they belong.
            let host_inodes = match compare_files(&delta, &upper, &below)?.is_empty() {
                true => HostInodes::Copied,
                false => HostInodes::Valid,
            };
            let repaired = reconcile(&self.db, id, &mut delta, &upper, &below, host_inodes)?;
            done.add(repaired);
            upper.unsynced().note_everything();
            let layer = FrozenLayer::new(id, delta, Arc::new(upper), below.clone());
            lower = Arc::new(LowerStack::over(Arc::new(layer), below));
        }
        Ok((lower, done))
    }

    /// Returns whether the writable layer has rows.
    pub(crate) fn has_rows(&self) -> bool {
        !self.read().delta.is_empty()
    }

    /// Reads all rows of the writable layer that are in the database only.
    pub(crate) fn load_rows(&self) -> Result<()> {
        self.read().delta.load()
    }
}
