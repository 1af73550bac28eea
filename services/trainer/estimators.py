"""The scikit-learn classes that a pipeline may be made of: exactly those that survive fit, conversion and parity.

`tests/unit/trainer/test_estimators.py` fits and converts every one of them. A class that is not here is refused by
its name; nothing that a client sends is ever imported. Left out on purpose: FunctionTransformer (code), text
vectorizers (they can read files), and what ONNX has no equal for (DummyClassifier, SplineTransformer, ...).
"""

from __future__ import annotations

from types import MappingProxyType

_TABLE = {
    "sklearn.pipeline": ("Pipeline", "FeatureUnion"),
    "sklearn.compose": ("ColumnTransformer",),
    "sklearn.preprocessing": (
        *("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler", "Normalizer", "Binarizer"),
        *("PowerTransformer", "KBinsDiscretizer", "PolynomialFeatures"),
        *("OneHotEncoder", "OrdinalEncoder", "TargetEncoder"),
    ),
    "sklearn.impute": ("SimpleImputer",),
    "sklearn.decomposition": ("PCA", "TruncatedSVD", "IncrementalPCA", "KernelPCA"),
    "sklearn.random_projection": ("GaussianRandomProjection",),
    "sklearn.feature_selection": (
        *("SelectKBest", "SelectPercentile", "SelectFpr", "SelectFdr", "SelectFwe", "VarianceThreshold"),
    ),
    "sklearn.linear_model": (
        *("LogisticRegression", "LogisticRegressionCV", "SGDClassifier", "RidgeClassifier", "Perceptron"),
        *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "Lars"),
        *("LassoLars", "OrthogonalMatchingPursuit", "BayesianRidge", "ARDRegression", "HuberRegressor"),
        *("TheilSenRegressor", "SGDRegressor", "QuantileRegressor", "RANSACRegressor"),
        *("PoissonRegressor", "GammaRegressor", "TweedieRegressor"),
    ),
    "sklearn.discriminant_analysis": ("QuadraticDiscriminantAnalysis",),
    "sklearn.naive_bayes": ("GaussianNB", "BernoulliNB"),
    "sklearn.tree": ("DecisionTreeClassifier", "ExtraTreeClassifier", "DecisionTreeRegressor", "ExtraTreeRegressor"),
    "sklearn.ensemble": (
        *("RandomForestClassifier", "ExtraTreesClassifier", "GradientBoostingClassifier"),
        *("HistGradientBoostingClassifier", "AdaBoostClassifier", "BaggingClassifier"),
        *("VotingClassifier", "StackingClassifier"),
        *("RandomForestRegressor", "ExtraTreesRegressor", "GradientBoostingRegressor"),
        *("HistGradientBoostingRegressor", "AdaBoostRegressor", "BaggingRegressor"),
        *("VotingRegressor", "StackingRegressor"),
    ),
    "sklearn.neighbors": (
        *("KNeighborsClassifier", "RadiusNeighborsClassifier", "KNeighborsRegressor", "RadiusNeighborsRegressor"),
    ),
    "sklearn.neural_network": ("MLPClassifier", "MLPRegressor"),
    "sklearn.svm": ("SVC", "NuSVC", "LinearSVC", "SVR", "NuSVR", "LinearSVR"),
    "sklearn.calibration": ("CalibratedClassifierCV",),
    "sklearn.multiclass": ("OneVsRestClassifier",),
    "sklearn.cross_decomposition": ("PLSRegression",),
}

# Public name of each class -> (module to import, name in it).
ALLOWED = MappingProxyType({f"{m}.{name}": (m, name) for m, names in _TABLE.items() for name in names})

# Parameter -> the values that are harmless, and why no other is taken.
REFUSED_PARAMETERS = MappingProxyType(
    {
        "memory": ((None,), "nothing is cached in files"),
        "categorical_features": (
            (None, "from_dtype"),
            "ONNX has no equal; let a ColumnTransformer encode the categories before",
        ),
    }
)

# Values that leave predictions as they are and make training or conversion possible, set over the caller's: how many
# threads is the trainer's business, output goes nowhere, and ONNX has no sparse matrices.
FORCED_PARAMETERS = MappingProxyType({"n_jobs": None, "verbose": False, "flatten_transform": False})
FORCED_VALUES = MappingProxyType({("encode", "onehot"): "onehot-dense"})
