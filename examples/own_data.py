"""Train on your own data: arrays, a torch Dataset, a file of arrays, a folder of images.

Run it with ``python own_data.py``; it takes seconds. On the command line, the same data is

    plastibench run cl-own --env.path own_data.py:arrays --agent mlp --intervention none,rnr
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

import plastibench as pb

SMALL = {"epochs": 2, "stop_after": 2}  # a trial; leave it out for a real experiment


def arrays():
    """Return a training and a test set: images [N, H, W], [N, H, W, C] or [N, C, H, W] and labels [N]."""
    digits = load_digits(n_class=4)
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return (images[:300], digits.target[:300]), (images[300:], digits.target[300:])


class Stripes(Dataset):
    """A torch Dataset of (image, label). ``classes`` are the names of the labels, if there are any."""

    classes = ("horizontal", "vertical")

    def __len__(self):
        return 80

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        lines = torch.rand(8, 1, generator=draws).expand(8, 8)
        return (lines if index % 2 == 0 else lines.T)[None], index % 2  # float [1, 8, 8] in [0, 1]


def dataset():
    """Return a single set: one fifth of each class becomes the test set. Hugging Face datasets work, too."""
    return Stripes()


def main():
    """Train on four forms of data."""
    options = {"agent_options": {"width": 32}, "progress": False}
    for function in ("arrays", "dataset"):
        result = pb.train("cl-own", "mlp", "rnr", env_options={"path": f"own_data:{function}", **SMALL}, **options)
        print(f"{function}: final accuracy {100 * result.final:.1f} %")

    with tempfile.TemporaryDirectory() as folder:
        (train_images, train_labels), (test_images, test_labels) = arrays()
        file = Path(folder, "digits.npz")
        np.savez(file, x_train=train_images, y_train=train_labels, x_test=test_images, y_test=test_labels)
        result = pb.train("relabel-own", "mlp", "rnr", env_options={"path": str(file), **SMALL}, **options)
        print(f"digits.npz: final accuracy {100 * result.final:.1f} %")

        for index, (image, label) in enumerate(zip(train_images[:40], train_labels, strict=False)):
            path = Path(folder, "images", f"digit-{label}", f"{index}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        images = {"path": str(Path(folder, "images")), "image_size": 8, **SMALL}
        result = pb.train("cl-own", "mlp", "rnr", env_options=images, data_dir=folder, **options)
        print(f"images/: final accuracy {100 * result.final:.1f} %")


if __name__ == "__main__":
    main()
