"""Values in label maps that stand for no class."""

from __future__ import annotations

# Class id of pixels that take part in neither training nor evaluation. Class ids are 16 bits wide, because
# lists of more than 255 classes exist; files that write "ignore" as 255 have an id table that says so.
IGNORE = 65535
# Class id of pixels that are known to belong to none of the classes: nothing is asked about them, but a mask that
# claims them is wrong.
NOTHING = 65534
UNDEFINED = -1  # entry of an id table for values that a label file must not contain
UNCLAIMED = -1  # in a predicted label map: no mask claims this pixel
