"""A bucket of the tests' own: gs:// addresses lead into a folder, through the same fsspec door as Google's."""

import fsspec
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


def install(root):
    """From now on gs://NAME/PATH is root/NAME/PATH in this process."""

    class Bucket(DirFileSystem):
        protocol = "gs"

        def __init__(self, **_):
            super().__init__(str(root), LocalFileSystem(auto_mkdir=True))

        def _join(self, path):
            if isinstance(path, list):
                return [self._join(each) for each in path]
            return super()._join(str(path).removeprefix("gs://"))

    fsspec.register_implementation("gcs", Bucket, clobber=True)  # the name by which etils asks for gs://
