"""Kinds of layers, what they share, and how their weights are parametrised."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.adaptation.zoo.kinds import Around, kind, lin, net

# -- what stands twice, is shared, frozen or not used


@kind("an activation that stands twice")
def _():
    act = nn.Tanh()
    return net(lin(3, 5), act, lin(5, 5), act, lin(5))


@kind("a linear layer that stands twice")
def _():
    layer = lin(3, 3)
    return net(layer, nn.Tanh(), layer, nn.Tanh(), lin())


@kind("a pool that stands twice", shape=(1, 8, 8))
def _():
    pool = nn.AvgPool2d(2)
    return net(nn.Conv2d(1, 2, 3, padding=1), pool, nn.Tanh(), pool, nn.Flatten(), lin(8))


@kind("tied weights")
def _():
    model = net(lin(3, 3), nn.Tanh(), lin(3, 3), nn.Tanh(), lin())
    model[2].weight = model[0].weight
    return model


@kind("a parameter that is never used")
def _():
    return Around(lambda self, x: self.a(x), a=lin(), b=lin())


@kind("a frozen layer")
def _():
    model = net(lin(3, 4), nn.Tanh(), lin(4))
    model[0].requires_grad_(False)
    return model


@kind("ModuleList, residual")
def _():
    def forward(self, x):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)

    return Around(forward, blocks=nn.ModuleList([lin(3, 3), lin(3, 3)]), head=lin())


# -- layers and shapes


@kind("PReLU, Bilinear")
def _():
    return Around(lambda self, x: self.b(self.p(self.a(x)), x), a=lin(3, 4), p=nn.PReLU(), b=nn.Bilinear(4, 3, 2))


@kind("LayerNorm")
def _():
    return net(lin(3, 4), nn.LayerNorm(4), nn.Tanh(), lin(4))


@kind("RMSNorm")
def _():
    return net(lin(3, 4), nn.RMSNorm(4), nn.Tanh(), lin(4))


@kind("GroupNorm behind Linear")
def _():
    return net(lin(3, 8), nn.GroupNorm(2, 8), nn.Tanh(), lin(8))


@kind("InstanceNorm", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True), nn.SiLU(), nn.Flatten(), lin(12))


@kind("LocalResponseNorm", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.LocalResponseNorm(2), nn.Flatten(), lin(12))


@kind("BatchNorm2d", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), lin(12))


@kind("BatchNorm1d on (N, C, L)", shape=(5, 3))
def _():
    return net(nn.BatchNorm1d(5), nn.Flatten(), lin(15))


@kind("Linear on (N, L, F)", shape=(5, 3))
def _():
    return net(lin(3, 4), nn.Tanh(), nn.Flatten(), lin(20))


@kind("Dropout, Flatten on (N, L, F)", shape=(5, 3), tasks=1)
def _():
    return net(nn.Dropout(0.3), nn.Flatten(), lin(15))


@kind("Linear behind Conv2d", shape=(1, 6, 6))
def _():
    return net(nn.Conv2d(1, 3, 3), nn.Tanh(), lin(4, 5), nn.Flatten(), lin(60))


@kind("Conv1d", shape=(2, 6))
def _():
    return net(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), lin(6))


@kind("Conv2d, padding='same'", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3, padding="same"), nn.Tanh(), nn.Flatten(), lin(48))


@kind("Conv2d, circular padding", shape=(2, 4, 4))
def _():
    return net(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Flatten(), lin(48))


@kind("Conv2d, groups and dilation", shape=(4, 6, 6))
def _():
    return net(nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.Tanh(), nn.Flatten(), lin(16))


@kind("ConvTranspose2d, PixelShuffle", shape=(2, 3, 3))
def _():
    return net(nn.ConvTranspose2d(2, 4, 2), nn.Tanh(), nn.PixelShuffle(2), nn.Flatten(), lin(64))


@kind("Conv3d", shape=(1, 3, 3, 3))
def _():
    return net(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), lin(16))


@kind("Embedding", shape=(4,), classes=6)
def _():
    return net(nn.Embedding(6, 3), nn.Flatten(), nn.Tanh(), lin(12))


@kind("EmbeddingBag", shape=(4,), classes=6)
def _():
    return net(nn.EmbeddingBag(6, 3), nn.Tanh(), lin())


@kind("Embedding(max_norm)", shape=(4,), classes=6)
def _():
    return net(nn.Embedding(6, 3, max_norm=0.5), nn.Flatten(), lin(12))


# -- recurrent, attention


@kind("LSTM", shape=(5, 3))
def _():
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=nn.LSTM(3, 4, batch_first=True), o=lin(4))


@kind("GRU, two layers, both ways", shape=(5, 3))
def _():
    cell = nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=cell, o=lin(8))


@kind("RNN", shape=(5, 3))
def _():
    return Around(lambda self, x: self.o(self.r(x)[0][:, -1]), r=nn.RNN(3, 4, batch_first=True), o=lin(4))


@kind("LSTMCell", shape=(3, 3))
def _():
    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.c(x[:, t], state)
        return self.o(state[0])

    return Around(forward, c=nn.LSTMCell(3, 4), o=lin(4))


@kind("a state that begins as torch.zeros", shape=(3, 3))
def _():
    def forward(self, x):
        state = torch.zeros(len(x), 4)
        for t in range(x.shape[1]):
            state = torch.tanh(self.i(x[:, t]) + self.h(state))
        return self.o(state)

    return Around(forward, i=lin(3, 4), h=lin(4, 4), o=lin(4))


@kind("MultiheadAttention", shape=(5, 4))
def _():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return Around(lambda self, x: self.o(self.a(x, x, x)[0].mean(1)), a=attention, o=lin(4))


@kind("TransformerEncoderLayer", shape=(5, 4))
def _():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
    return Around(lambda self, x: self.o(self.t(x).mean(1)), t=layer, o=lin(4))


# -- parametrised


@kind("weight_norm, parametrisation")
def _():
    return net(parametrizations.weight_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("weight_norm, the older hook")
def _():
    return net(nn.utils.weight_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("spectral_norm in training")
def _():
    return net(parametrizations.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("spectral_norm in evaluation")
def _():
    return net(parametrizations.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5)).eval()


@kind("spectral_norm, the older hook")
def _():
    return net(nn.utils.spectral_norm(lin(3, 5)), nn.Tanh(), lin(5))


@kind("orthogonal")
def _():
    return net(parametrizations.orthogonal(lin(3, 3)), nn.Tanh(), lin())


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


@kind("a parametrisation of one's own")
def _():
    model = net(lin(3, 3), nn.Tanh(), lin())
    parametrize.register_parametrization(model[0], "weight", Symmetric())
    return model


@kind("pruned weights")
def _():
    model = net(lin(3, 5), nn.Tanh(), lin(5))
    prune.random_unstructured(model[0], "weight", amount=0.4)
    return model
