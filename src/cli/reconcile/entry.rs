//! What one line counts, and why the provider may have counted something else for it.

use strum::{EnumCount, EnumIter, IntoStaticStr};

use crate::cli::reconcile::{Dimension, Key, Used};

/// What a line counts, and where.
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) used: Used,
    pub(super) causes: Vec<Cause>,
    /// Its `event_id`.
    pub(super) event: String,
}

/// Why the provider may have counted something else for a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, EnumIter, IntoStaticStr)]
pub(super) enum Cause {
    /// The upstream may have worked for it: it was reset, timed out, or its client left before the answer.
    #[strum(serialize = "sent upstream and not answered")]
    Unanswered,
    /// Its usage comes when somebody asks for the response.
    #[strum(serialize = "background, never fetched")]
    Background,
    /// The provider may count it when it ended, and not when it was created.
    #[strum(serialize = "background, fetched after the last bucket")]
    FetchedAfter,
    #[strum(serialize = "background, created before the first bucket")]
    CreatedBefore,
    #[strum(serialize = "background, whose create is not in the log")]
    CreateUnknown,
    #[strum(serialize = "cut off before the usage")]
    Cut,
    #[strum(serialize = "failed upstream")]
    Failed,
    #[strum(serialize = "answered without usage")]
    WithoutUsage,
    #[strum(serialize = "ran over midnight")]
    Midnight,
    #[strum(serialize = "whose tier the answer did not confirm")]
    TierUnconfirmed,
}

impl Cause {
    /// Whether the provider may count a request that the row has not.
    pub(super) fn adds_requests(self) -> bool {
        matches!(
            self,
            Cause::Unanswered | Cause::CreatedBefore | Cause::CreateUnknown
        )
    }

    /// Whether the provider may leave a request out that the row has.
    pub(super) fn takes_requests(self) -> bool {
        matches!(self, Cause::Failed | Cause::FetchedAfter)
    }

    /// By what the row differs that the provider may have it in.
    pub(super) fn moves(self) -> Option<Dimension> {
        match self {
            Cause::Midnight => Some(Dimension::Day),
            Cause::TierUnconfirmed => Some(Dimension::ServiceTier),
            _ => None,
        }
    }

    /// Whether the provider may know tokens that the log does not.
    pub(super) fn hides_tokens(self) -> bool {
        matches!(
            self,
            Cause::Background | Cause::Cut | Cause::Failed | Cause::WithoutUsage
        )
    }
}
