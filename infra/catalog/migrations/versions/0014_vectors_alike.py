"""Either all vectors are encrypted or none: triggers refuse the others, made after every migration as the journal's are."""

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    pass
